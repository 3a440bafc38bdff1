"""`irv2-train`: train the network and leave a checkpoint."""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from irv2.block_names import STAGES
from irv2.cli.config import words_from_file
from irv2.cli.options import (
    FloatRange,
    bad_images_option,
    data_option,
    device_option,
    json_option,
    limit_option,
    print_json,
)
from irv2.cli.program import Program
from irv2.images.orientation import ORIENTATIONS
from irv2.images.resample import RESAMPLERS
from irv2.train.defaults import RecipeOption
from irv2.train.settings import BEST

if TYPE_CHECKING:
    from irv2.data.dataset import BadImages

recipe_option = partial(click.option, cls=RecipeOption)

# In the order in which people decide; each with its options
SECTIONS = {
    "What to train, on what": "setting recipe data out resume init-from show-model limit "
    "bad-images",
    "How long, and with what": "epochs time-budget patience batch-size precision device workers "
    "compile micro-batch checkpoint-activations deterministic save-minutes chance-steps",
    "Pictures": "image-size resize resampling mean std orientation sampling class-weights",
    "Augmentation": "augmentation max-shift flip min-area auto-augment erase mixup cutmix",
    "Learning": "learning-rate gamma decay-steps warmup-steps momentum weight-decay decay "
    "label-smoothing dropout ema-decay bn-group bn-momentum seed",
    "Network": "arch width blocks residual-scale",
    "Parts that are trained": "train batch-norm backbone-lr-factor feature-crops",
}


@click.command(
    cls=Program,
    sections=SECTIONS,
    examples=(
        "irv2-train --setting 2                                   # the built-in sample",
        "irv2-train --setting 1 --data imagenet --out runs/first  # the same again resumes",
        "irv2-train --setting 2 --data pictures --show-config",
    ),
)
@click.option("--setting", type=click.Choice(["1", "2", "paper"]), required=True,
              help="The original's settings: rate 0.045 x 0.96 every 12,800 (1) or 25,600 (2) "
              "steps of 64 images, 90 epochs; paper: x 0.94 every 80,076, 300 epochs.")  # fmt: skip
@recipe_option(
    "--arch",
    type=click.Choice(["inception_resnet_v2", "inception_resnet_v2_slim"]),
    help="The network: the paper's, as the original, or TF-slim's, as timm and Keras.",
)
@data_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="The run's folder.  [default: runs/setting-N]")  # fmt: skip
@click.option("--resume", is_flag=True,
              help="Fail unless DIR holds a run; one is resumed in any case.")  # fmt: skip
@click.option("--show-model", is_flag=True, help="Print the network's blocks and exit.")
@recipe_option("--epochs", type=click.IntRange(1), help="Passes over the images.")
@recipe_option(
    "--learning-rate",
    type=FloatRange(0, min_open=True),
    help="Initial rate, for steps of 64 images.",
)
@recipe_option("--gamma", type=FloatRange(0, 1, min_open=True), help="Factor of each decay.")
@recipe_option("--decay-steps", type=click.IntRange(1), help="Steps of 64 images between decays.")
@recipe_option(
    "--momentum",
    type=FloatRange(0, 1, min_open=True, max_open=True),
    help="Nesterov momentum. In a setting, 0.9 instead of the original's 0.4737 makes the "
    "effective rate 5.3 times larger; it is the paper's according to one reader, and the "
    "only report of such runs is that they came out wrong.",
)
@recipe_option("--weight-decay", type=FloatRange(0), help="Weight decay, on what --decay says.")
@recipe_option(
    "--batch-size",
    type=click.IntRange(2),
    metavar="IMAGES",
    help="Images per step over all processes; at least a batch-norm group for each.",
)
@click.option(
    "--micro-batch",
    type=click.IntRange(2),
    metavar="IMAGES",
    help="Images per pass; gradients add up over passes, which saves memory.  [default: all]",
)
@recipe_option(
    "--bn-group",
    type=click.IntRange(2),
    metavar="IMAGES",
    help="Images that share batch-norm statistics.",
)
@recipe_option(
    "--bn-momentum",
    type=FloatRange(0, 1, min_open=True),
    help="Weight of a step's batch-norm statistics in the running ones, with which the network "
    "is evaluated.",
)
@recipe_option("--image-size", type=click.IntRange(75), metavar="PIXELS", help="Side of the crop.")
@recipe_option(
    "--resize",
    type=click.IntRange(75),
    metavar="PIXELS",
    help="Shorter side of an evaluation image before its centre is cut out; follows --image-size.",
)
@recipe_option(
    "--resampling",
    type=click.Choice(list(RESAMPLERS)),
    help="Method for every resized image, in training and evaluation.",
)
@recipe_option(
    "--mean",
    nargs=3,
    type=FloatRange(-1, 1),
    metavar="R G B",
    help="Mean of pixels scaled to 0..1.",
)
@recipe_option(
    "--std",
    nargs=3,
    type=FloatRange(0, min_open=True),
    metavar="R G B",
    help="Their standard deviation.",
)
@recipe_option(
    "--orientation",
    type=click.Choice(ORIENTATIONS),
    help="Pixels as they are stored, or turned as EXIF says, which photographs of phones need; "
    "in training, evaluation and wherever the model is used.",
)
@recipe_option(
    "--augmentation",
    type=click.Choice(["area-crop", "shift"]),
    help="area-crop: the original's random areas of photographs; shift: whole images moved by up "
    "to --max-shift, for small ones.",
)
@recipe_option(
    "--max-shift",
    type=FloatRange(0, 0.5),
    metavar="FRACTION",
    help="Largest shift, as a fraction of the image's side.",
)
@recipe_option(
    "--flip/--no-flip",
    default=None,
    help="Mirror half of the training images; not those of the built-in sample, unless asked to.",
)
@recipe_option(
    "--min-area",
    type=FloatRange(0, 1, min_open=True),
    metavar="FRACTION",
    help="Smallest area of a random crop, as a fraction of the image.",
)
@recipe_option(
    "--auto-augment",
    type=click.Choice(["none", "trivial"]),
    help="trivial: TrivialAugment, one random operation of random strength for each image.",
)
@recipe_option(
    "--erase",
    type=FloatRange(0, 1),
    metavar="PROBABILITY",
    help="Fill a random part of an image with random pixels.",
)
@recipe_option(
    "--mixup",
    type=FloatRange(0),
    metavar="ALPHA",
    help="Blend each image with another one; parameter of the share's beta distribution, 0.2 is "
    "usual.",
)
@recipe_option(
    "--cutmix",
    type=FloatRange(0),
    metavar="ALPHA",
    help="Cut a part of another image into each one; 1 is usual. With --mixup, each takes half "
    "of the steps.",
)
@recipe_option(
    "--width", type=FloatRange(0, 4, min_open=True), help="Factor of every channel count."
)
@recipe_option(
    "--blocks",
    type=(click.IntRange(1), click.IntRange(1), click.IntRange(1)),
    metavar="A B C",
    help="Residual blocks of each grid.",
)
@recipe_option(
    "--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of weights, order and augmentation."
)
@recipe_option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    help="Type of forward and backward pass; weights stay float32. TF32 is off.",
)
@click.option(
    "--deterministic",
    is_flag=True,
    default=None,
    help="Make runs repeatable to the bit on GPUs too, more slowly.",
)
@click.option("--compile", is_flag=True, help="Use torch.compile (minutes at first); for GPUs.")
@click.option(
    "--checkpoint-activations",
    is_flag=True,
    help="Store fewer activations and recompute the rest; same results. Not with --compile.",
)
@click.option(
    "--recipe",
    type=click.Choice(["setting", "modern"]),
    default="setting",
    help="modern: momentum 0.9, label smoothing 0.1, warm-up, cosine, and an average of "
    "the weights in best-ema.pt; not the original's.",
)
@recipe_option(
    "--residual-scale",
    type=FloatRange(0, min_open=True),
    help="Factor of every residual; of the paper's network.",
)
@recipe_option(
    "--dropout",
    type=FloatRange(0, 1, max_open=True),
    help="Fraction of features dropped before classifying.",
)
@recipe_option(
    "--train",
    "trained",
    type=click.Choice(STAGES),
    help="The first part that is trained; what lies before it keeps its weights and batch-norm "
    "statistics. head: the last layer alone, on features computed once.",
)
@recipe_option(
    "--batch-norm",
    type=click.Choice(["group", "held"]),
    help="Statistics of batch norm in trained parts: of each group, or those it began with.",
)
@recipe_option(
    "--decay",
    type=click.Choice(["all", "weights"]),
    help="What weight decay acts on; weights: neither batch norm nor biases.",
)
@recipe_option(
    "--backbone-lr-factor",
    type=FloatRange(0, 1, min_open=True),
    metavar="FACTOR",
    help="Rate of the stem as a share of the last layer's; those between in equal ratios.",
)
@recipe_option(
    "--feature-crops",
    type=click.IntRange(1),
    metavar="N",
    help="Augmentations of each image whose features a head is trained on; for --train head.",
)
@recipe_option(
    "--class-weights",
    type=click.Choice(["none", "balanced"]),
    help="Weights of images in the loss; balanced: every class counts alike, however few images "
    "it has.",
)
@recipe_option(
    "--sampling",
    type=click.Choice(["uniform", "balanced"]),
    help="Images of an epoch: each once, or as many of every class (balanced), those of small "
    "classes repeatedly.",
)
@recipe_option(
    "--patience",
    type=click.IntRange(0),
    metavar="EPOCHS",
    help="End after this many epochs without a lower top-1 error; 0: never.",
)
@click.option("--time-budget", "time_budget_minutes", type=FloatRange(0, min_open=True),
              metavar="MINUTES", help="End in time, with the best weights so far.")  # fmt: skip
@recipe_option(
    "--label-smoothing",
    type=FloatRange(0, 1, max_open=True),
    help="Fraction of a label spread evenly over all classes.",
)
@recipe_option(
    "--warmup-steps", type=click.IntRange(0), help="Steps of 64 images until the full rate."
)
@recipe_option(
    "--ema-decay",
    type=FloatRange(0, 1, max_open=True),
    help="Decay of an average of the weights; 0: no average.",
)
@click.option(
    "--init-from",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="CKPT",
    help="Begin with a checkpoint's weights; of the last layer, with the rows of the classes "
    "whose names are the same. It decides the network, and the preprocessing unless an option "
    "does.",
)
@click.option(
    "--workers",
    type=click.IntRange(0),
    metavar="N",
    help="Decoding processes.  [default: this process's share of the cores; 0 for the sample]",
)
@click.option("--save-minutes", type=FloatRange(0), default=10.0, metavar="MINUTES",
              help="Time between checkpoints within an epoch.")  # fmt: skip
@click.option("--chance-steps", type=click.IntRange(0), default=5000, metavar="STEPS",
              help="Stop after this many steps no better than guessing; 0: never.")  # fmt: skip
@device_option
@limit_option
@bad_images_option
@json_option
def main(
    setting: str,
    data: Path | None,
    out: Path | None,
    resume: bool,
    show_model: bool,
    micro_batch: int | None,
    compile: bool,
    checkpoint_activations: bool,
    recipe: str,
    init_from: Path | None,
    workers: int | None,
    save_minutes: float,
    chance_steps: int,
    time_budget_minutes: float | None,
    device: str,
    limit: int | None,
    bad_images: "BadImages",
    as_json: bool,
    **overrides: Any,  # noqa: ANN401 (fields of Recipe)
) -> None:
    """Train Inception-ResNet-v2 as the original did.

    Leaves last.pt, best.pt, config.json, metrics.jsonl and curves.png. The same command again
    resumes an unfinished run. Without --data a small network of the same blocks is trained on the
    built-in sample.
    """
    from irv2.train import start

    request = start.Request(
        setting=setting,
        data=data,
        out=out or Path("runs") / f"setting-{setting}",
        resume=resume,
        init_from=init_from,
        modern=recipe == "modern",
        workers=workers,
        save_minutes=save_minutes,
        chance_steps=chance_steps,
        time_budget_minutes=time_budget_minutes,
        micro_batch=micro_batch,
        compile=compile,
        checkpoint_activations=checkpoint_activations,
        device=device,
        limit=limit,
        bad_images=bad_images,
        command=command_line(),
        overrides={name: value for name, value in overrides.items() if value is not None},
    )
    if show_model:
        model = start.show_model(request)
        print_json(model) if as_json else click.echo(model["table"])
        return
    print_result(start.train(request), as_json)


def print_result(result: dict[str, Any] | None, as_json: bool) -> None:
    """Print a run's result; only the first of its processes has one."""
    if result is None:
        return
    if as_json:
        print_json(result)
    else:
        for file, kind in BEST.items():
            if file in result:
                click.echo(
                    f"{result[file]}: top-1 error {result[f'{kind}top1_error']:.3f} %, "
                    f"top-5 error {result[f'{kind}top5_error']:.3f} % "
                    f"(epoch {result[f'{kind}epoch']}, chosen on these images)"
                )


def command_line() -> str:
    """Return the command line to start this run again: torchrun's, or this program's.

    Options of a file are part of it, so that it holds in any folder.
    """
    launcher = Path(f"/proc/{os.getppid()}/cmdline")
    if "TORCHELASTIC_RUN_ID" in os.environ and launcher.is_file():
        words = os.fsdecode(launcher.read_bytes()).rstrip("\0").split("\0")
    elif sys.argv[1:2] == ["finetune"]:
        words = ["irv2", *sys.argv[1:]]
    else:
        name_parts = 2 if sys.argv[1:2] == ["train"] else 1  # `irv2 train` or `irv2-train`
        words = ["irv2-train", *sys.argv[name_parts:]]
    return shlex.join([*words, *words_from_file(click.get_current_context())])
