"""`irv2 finetune`: `irv2-train` with a recipe of its own, begun from a checkpoint."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from irv2.block_names import Stage
from irv2.cli.config import option_name
from irv2.cli.program import Program
from irv2.train.cli import SECTIONS, command_line, main, print_result
from irv2.train.defaults import RecipeOption


def _finetune(
    checkpoint: Path,
    head_epochs: int | None,
    trained: Stage | None,
    out: Path | None,
    as_json: bool,
    **options: Any,  # noqa: ANN401 (fields of Request and Recipe)
) -> None:
    """Fine-tune CKPT, of either network, on the pictures of --data.

    CKPT comes from irv2 import or irv2-train. Its last layer is trained first, on features that
    the rest gives once; then the whole network, or the stages from --train on. Leaves what
    irv2-train leaves, and the first phase's run in DIR/head. The same command again resumes.
    """
    from irv2.train.finetune import finetune
    from irv2.train.start import Request

    own = {field.name for field in dataclasses.fields(Request)}
    request = Request(
        setting="finetune",
        out=out or Path("runs/finetune"),
        init_from=checkpoint,
        command=command_line(),
        overrides={n: v for n, v in options.items() if n not in own and v is not None},
        **{name: value for name, value in options.items() if name in own},
    )
    print_result(finetune(request, trained or "all", head_epochs), as_json)


def _options_of_finetune() -> list[click.Parameter]:
    """Those of irv2-train, but what CKPT decides or fine-tuning replaces."""
    left_out = {"setting", "recipe", "init_from", "show_model", "arch", "width", "blocks",
                "residual_scale", "gamma", "decay_steps", "out",
                "config", "show_config", "debug", "version"}  # fmt: skip
    kept = [parameter for parameter in main.params if parameter.name not in left_out]
    out = click.Option(["--out"], type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
                       help="The run's folder.  [default: runs/finetune]")  # fmt: skip
    checkpoint = click.Argument(["checkpoint"], type=click.Path(path_type=Path, dir_okay=False),
                                metavar="CKPT")  # fmt: skip
    head_epochs = RecipeOption(
        ["--head-epochs"],
        type=click.IntRange(0),
        metavar="N",
        help="Epochs of the last layer alone, before --train; 0: none.",
    )
    return [checkpoint, out, head_epochs, *kept]


def _sections(options: list[click.Parameter]) -> dict[str, str]:
    """Those of irv2-train, with the options that are left."""
    names = [option_name(option) for option in options]
    kept = {title: [n for n in text.split() if n in names] for title, text in SECTIONS.items()}
    kept["Parts that are trained"].append("head-epochs")
    return {title: " ".join(left) for title, left in kept.items() if left}


_OPTIONS = _options_of_finetune()
finetune = Program(
    "finetune",
    params=_OPTIONS,
    sections=_sections(_OPTIONS),
    examples=(
        "irv2 finetune weights.pt --data pictures               # the head, then all of it",
        "irv2 finetune weights.pt --data pictures --train head  # in minutes on a CPU",
    ),
    callback=_finetune,
    help=_finetune.__doc__,
    short_help="Train on from weights that know other pictures.",
)
