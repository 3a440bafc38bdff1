"""`irv2 eval`: the errors of a checkpoint or a bundle on the validation images."""

from pathlib import Path

import click

from irv2.dataset import BadImages
from irv2.evaluate import evaluate_model
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
@click.argument("model", type=click.Path(exists=True, path_type=Path), metavar="CHECKPOINT|BUNDLE")
@data_option
@limit_option
@device_option
@bad_images_option
@click.option(
    "--ledger", "ledger_path", type=click.Path(dir_okay=False, path_type=Path), metavar="NPZ",
    help="Write every answer there, for `irv2 diff`.",
)  # fmt: skip
@json_option
def main(
    model: Path, data: Path | None, limit: int | None, device: str, bad_images: BadImages,
    ledger_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure top-1 and top-5 error over DIR/val, each image counted exactly once."""
    result = evaluate_model(model, data, limit, device, bad_images, ledger_path)
    if as_json:
        print_json(result)
    else:
        click.echo(
            f"{result['n']} images: top-1 error {result['top1_error']:.3f} %, "
            f"top-5 error {result['top5_error']:.3f} % ({result['backend']})"
        )
