"""Options shared by several programs, spelt the same everywhere."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class FloatRange(click.FloatRange):
    """A finite number; click's own range lets nan through, and inf if it has no upper end."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 (click's signature)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """Check a value; called by click."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def percent(*, all_of_it: bool = False) -> Callable[..., float | None]:
    """Return a callback that reads a share written with its sign, as 15%; perhaps 100% too.

    Without the sign, 0.15 could mean either.
    """

    def read(context: click.Context, param: click.Parameter, value: str | None) -> float | None:
        if value is None:
            return None
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", value)
        share = float(found[1]) if found else 0.0
        if not (0 < share < 100 or (share == 100 and all_of_it)):
            raise click.BadParameter(f"{value!r} is not a percentage such as 15%.", context, param)
        return share

    return read


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
data_option = click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR|CSV", envvar="IRV2_DATA",
    show_envvar=True,
    help="Folder with train/CLASS/* and val/CLASS/*, or a list with columns path,label[,split].  "
    "[default: the built-in sample]",
)  # fmt: skip
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to compute."
)
limit_option = click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="N",
    help="Use only N images, taken evenly from the start of each class.",
)
bad_images_option = click.option(
    "--bad-images", type=click.Choice(["error", "skip"]), default="error",
    help="On a file that is not a readable image: stop, or report it and go on without it.",
)  # fmt: skip


def print_json(result: object) -> None:
    """Print the one JSON object of a program's stdout."""
    click.echo(json_text(result))


def json_text(result: object) -> str:
    """Return the text of that object."""
    return json.dumps(result, indent=2, allow_nan=False)
