"""`irv2 eval`: the errors of a checkpoint or a bundle on the validation images."""

from pathlib import Path

import click

from irv2.cli.options import (
    bad_images_option,
    data_option,
    device_option,
    json_option,
    limit_option,
    print_json,
)
from irv2.cli.program import Program
from irv2.data.dataset import BadImages
from irv2.errors import UsageError
from irv2.evaluate import BATCH_SIZE, EvaluationOptions, evaluate_model
from irv2.images.crops import CROPS
from irv2.system.files import check_folder_of
from irv2.system.machine import world_size


@click.command(cls=Program)
@click.argument("model", type=click.Path(exists=True, path_type=Path), metavar="CHECKPOINT|BUNDLE")
@data_option
@click.option(
    "--crops",
    type=click.Choice(list(map(str, CROPS))),
    default="1",
    help="Views of each image: the centre; the original's ten, logits summed; 12 or the "
    "paper's 144, softmax averaged.",
)
@click.option(
    "--legacy-average",
    is_flag=True,
    help="Add the original's unweighted mean over batches of 64, in which a last short "
    "batch counts in full; its published errors are such means.",
)
@click.option("--batch-size", type=click.IntRange(1), default=BATCH_SIZE, metavar="VIEWS",
              help="Views in one forward pass, at most what the model takes.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1), metavar="N",
              help="Decoding threads.  [default: the cores]")  # fmt: skip
@limit_option
@device_option
@bad_images_option
@click.option(
    "--ledger", "ledger_path", type=click.Path(dir_okay=False, path_type=Path), metavar="NPZ",
    help="Write every answer to this file, for `irv2 diff`.",
)  # fmt: skip
@json_option
def main(
    model: Path,
    data: Path | None,
    crops: str,
    legacy_average: bool,
    batch_size: int,
    workers: int | None,
    limit: int | None,
    device: str,
    bad_images: BadImages,
    ledger_path: Path | None,
    as_json: bool,
) -> None:
    """Measure top-1 and top-5 error over DIR/val, each image counted exactly once."""
    num_processes = world_size()
    if num_processes > 1:
        way_out = "leave out torchrun, or unset WORLD_SIZE"
        raise UsageError("irv2 eval", f"{num_processes} processes", "one", way_out)
    if ledger_path is not None:
        check_folder_of(ledger_path)
    options = EvaluationOptions(batch_size=batch_size, workers=workers, crops=int(crops))
    result = evaluate_model(model, data, limit, device, bad_images, options, ledger_path)
    if not legacy_average:
        result = {key: value for key, value in result.items() if not key.startswith("legacy_")}
    if as_json:
        print_json(result)
        return
    click.echo(
        f"{result['n']} images: top-1 error {result['top1_error']:.3f} %, "
        f"top-5 error {result['top5_error']:.3f} % ({result['backend']})"
    )
    if legacy_average:
        click.echo(
            f"the original's average: top-1 error {result['legacy_top1_error']:.3f} %, "
            f"top-5 error {result['legacy_top5_error']:.3f} %"
        )
