"""Options that programs share, spelt the same everywhere."""

import json
import math
from pathlib import Path
from typing import Any

import click


class FloatRange(click.FloatRange):
    """A finite number: nan lies in any of click's ranges, and inf in those without an end."""

    def convert(
        self,
        value: Any,  # noqa: ANN401 (click's signature)
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> float:
        """click's hook."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no finite number.", param, ctx)
        return number


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
data_option = click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", envvar="IRV2_DATA", show_envvar=True,
    help="Folder with train/CLASS/* and val/CLASS/*.  [default: the built-in sample]",
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
    help="A file that is not a readable image: stop, or name it and go on without.",
)  # fmt: skip


def print_json(result: object) -> None:
    """The one JSON object of a program's stdout."""
    click.echo(json.dumps(result, indent=2, allow_nan=False))
