"""`irv2-train`: train the network and leave a checkpoint."""

from pathlib import Path
from typing import Any

import click

from irv2.dataset import BadImages
from irv2.options import (
    Program,
    bad_images_option,
    data_option,
    device_option,
    json_option,
    limit_option,
    print_json,
)


@click.command(cls=Program)
@click.option("--setting", type=click.Choice(["1", "2", "paper"]), required=True,
              help="The original's settings: rate 0.045 x 0.96 every 12,800 (1) or 25,600 (2) "
              "steps of 64 images, 90 epochs; paper: x 0.94 every 80,076, 300 epochs.")  # fmt: skip
@data_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="The run's folder.  [default: runs/setting-N]")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Insist on a run to resume; one in DIR is resumed all the same.")  # fmt: skip
@click.option("--show-model", is_flag=True, help="Print the network's blocks and stop.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the images.")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True),
              help="Initial rate, for steps of 64 images.")  # fmt: skip
@click.option("--gamma", type=click.FloatRange(0, 1, min_open=True), help="Factor of a decay.")
@click.option("--decay-steps", type=click.IntRange(1), help="Steps of 64 images between decays.")
@click.option("--momentum", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Nesterov momentum. The original ran with 0.4737; 0.9, which a reviewer named "
              "as the paper's, makes the effective rate 5.3 times larger; the only report of such "
              "runs is that they came out wrong.")  # fmt: skip
@click.option("--weight-decay", type=click.FloatRange(0), help="On every parameter.")
@click.option("--batch-size", type=click.IntRange(2), metavar="IMAGES", help="Images per step.")
@click.option("--bn-group", type=click.IntRange(2), metavar="IMAGES",
              help="Images that share batch-norm statistics.")  # fmt: skip
@click.option("--image-size", type=click.IntRange(75), metavar="PIXELS",
              help="Side of the crop; the shorter side is resized to 328/299 of it.")  # fmt: skip
@click.option("--augmentation", type=click.Choice(["area-crop", "shift"]),
              help="area-crop: the original's random areas of photographs; shift: whole images "
              "moved by up to --max-shift, for small ones.  [default: area-crop]")  # fmt: skip
@click.option("--max-shift", type=click.FloatRange(0, 0.5), metavar="FRACTION",
              help="Largest shift, of the image's side.  [default: 0]")  # fmt: skip
@click.option("--width", type=click.FloatRange(0, 4, min_open=True),
              help="Factor of every channel count.")  # fmt: skip
@click.option("--blocks", type=(click.IntRange(1), click.IntRange(1), click.IntRange(1)),
              metavar="A B C", help="Residual blocks of each grid; published: 5 10 5.")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Of initial weights, order and augmentation."
)
@click.option("--workers", type=click.IntRange(0), metavar="N",
              help="Decoding processes.  [default: the cores; 0 for the sample]")  # fmt: skip
@click.option("--save-minutes", type=click.FloatRange(0), default=10.0, metavar="MINUTES",
              help="Time between checkpoints within an epoch.")  # fmt: skip
@device_option
@limit_option
@bad_images_option
@json_option
def main(
    setting: str, data: Path | None, out: Path | None, resume: bool, show_model: bool,
    workers: int | None, save_minutes: float, device: str, limit: int | None,
    bad_images: BadImages, as_json: bool, **overrides: Any,  # noqa: ANN401 (fields of Recipe)
) -> None:  # fmt: skip
    """Train Inception-ResNet-v2 as the original did.

    Leaves last.pt, best.pt, config.json, metrics.jsonl and curves.png. The same command again
    resumes an unfinished run. Without --data a small network of the same blocks is trained on the
    built-in sample.
    """
    from train import start

    request = start.Request(
        setting=setting, data=data, out=out or Path("runs") / f"setting-{setting}", resume=resume,
        workers=workers, save_minutes=save_minutes, device=device, limit=limit,
        bad_images=bad_images,
        overrides={name: value for name, value in overrides.items() if value is not None},
    )  # fmt: skip
    if show_model:
        model = start.show_model(request)
        print_json(model) if as_json else click.echo(model["table"])
        return
    result = start.train(request)
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{result['best']}: top-1 error {result['top1_error']:.3f} %, "
            f"top-5 error {result['top5_error']:.3f} % (epoch {result['epoch']}, "
            "chosen on these images)"
        )
