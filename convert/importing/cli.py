"""`irv2 import`: a checkpoint from published weights."""

from pathlib import Path
from typing import Literal

import click

from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.images.orientation import ORIENTATIONS
from irv2.images.resample import RESAMPLERS


def _show_networks(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from irv2.model.summary import side_by_side
    from irv2.network_config import ModelConfig, SlimConfig

    click.echo(side_by_side(ModelConfig(), SlimConfig(), image_size=299))
    context.exit()


@click.command(
    cls=Program,
    sections={
        "The checkpoint": "out classes arch weights keep-background",
        "Its preprocessing": "resize crop resampling mean std orientation",
        "Looking first": "compare show-networks",
    },
    examples=(
        "irv2 import inceptionresnetv2.pth -o weights.pt",
        "irv2 import hf:timm/inception_resnet_v2.tf_in1k -o weights.pt",
    ),
)
@click.argument("file", type=click.Path())
@click.option("-o", "--out", type=click.Path(path_type=Path, dir_okay=False), required=True,
              metavar="CKPT.pt", help="The checkpoint to write.")  # fmt: skip
@click.option(
    "--classes",
    "classes_path",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A class name per line, in order.  [default: ImageNet's 1000]",
)
@click.option(
    "--arch",
    default="auto",
    type=click.Choice(["auto", "inception_resnet_v2", "inception_resnet_v2_slim"]),
    help="The network to insist on: the paper's or TF-slim's.",
)
@click.option("--keep-background", is_flag=True,
              help="Of 1001 classes keep the first, the background.")  # fmt: skip
@click.option("--weights", "choice", default="raw", type=click.Choice(["raw", "ema"]),
              help="Of a training state's: the trained ones or their running average.")  # fmt: skip
@click.option("--mean", nargs=3, type=FloatRange(-1, 1), metavar="R G B",
              help="Mean of pixels scaled to 0..1.  [default: what the files say]")  # fmt: skip
@click.option("--std", nargs=3, type=FloatRange(0, min_open=True), metavar="R G B",
              help="Their standard deviation.  [default: what the files say]")  # fmt: skip
@click.option("--resize", type=click.IntRange(1), metavar="PIXELS",
              help="Shorter side of an image.  [default: what the files say]")  # fmt: skip
@click.option("--crop", type=click.IntRange(75), metavar="PIXELS",
              help="Side of the square in its centre.  [default: what the files say]")  # fmt: skip
@click.option("--resampling", type=click.Choice(list(RESAMPLERS)),
              help="How images are resized.  [default: what the files say]")  # fmt: skip
@click.option("--orientation", type=click.Choice(ORIENTATIONS),
              help="Pixels as stored, or turned as EXIF says.  [default: stored]")  # fmt: skip
@click.option("--compare", "compare_path", metavar="FILE.npz",
              type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Inputs and logits of the framework that the weights are from: exit 3 "
              "unless the logits agree.")  # fmt: skip
@click.option("--show-networks", is_flag=True, is_eager=True, expose_value=False,
              callback=_show_networks, help="Print both networks and stop.")  # fmt: skip
@json_option
def main(
    file: str,
    out: Path,
    classes_path: Path | None,
    arch: str,
    keep_background: bool,
    choice: Literal["raw", "ema"],
    compare_path: Path | None,
    as_json: bool,
    **preprocess: object,
) -> None:
    """Turn the weights in FILE into a checkpoint to evaluate, export and serve.

    FILE is recognised by its content: the original's .t7, or TF-slim's network as timm, Cadene
    (.pth, .safetensors) or Keras (.h5, .keras) ship it, or irv2's own state_dict. A FILE of the
    form hf:OWNER/NAME[@REVISION][/FILE] is fetched from the Hugging Face hub. The checkpoint
    carries the preprocessing that the weights were trained with, as the file, a config.json of
    timm beside it, or an option says. A file without a classifier can begin a fine-tuning.
    """
    from irv2.convert.importing.run import import_weights

    result = import_weights(
        file,
        out,
        classes_path=classes_path,
        arch=arch,
        keep_background=keep_background,
        choice=choice,
        preprocess={name: value for name, value in preprocess.items() if value is not None},
        compare_path=compare_path,
    )
    if as_json:
        print_json(result.to_json())
    else:
        click.echo(result.to_text())
