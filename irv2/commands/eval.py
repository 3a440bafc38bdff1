"""`irv2 eval`: how well a checkpoint, a bundle or a server does on the validation images."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from irv2.cli.options import (
    bad_images_option,
    data_option,
    device_option,
    json_option,
    limit_option,
    print_json,
)
from irv2.cli.program import Program
from irv2.cli.server_options import CONNECTION, connect, connection_options
from irv2.data.lists import SPLITS
from irv2.errors import UsageError
from irv2.images.contact_sheet import MAX_PICTURES
from irv2.images.crops import BATCH_SIZE, CROPS
from irv2.system.files import check_folder_of, write_atomically
from irv2.system.machine import world_size

if TYPE_CHECKING:
    from irv2.data.dataset import BadImages
    from irv2.measures.evaluation import Evaluation

HERE_ONLY = ("crops", "batch_size", "workers", "device")  # what a server decides itself


@click.command(
    cls=Program,
    sections={
        "What to measure": "data split server crops limit",
        "What to write": "out worst ledger",
        "How": "device batch-size workers bad-images legacy-average",
        "Connection": CONNECTION,
    },
    examples=(
        "irv2 eval runs/first/best.pt --data pictures --split test",
        "irv2 eval best.bundle --data pictures --worst 20 -o worst.png",
        "irv2 eval --server 127.0.0.1:8500 --data pictures",
    ),
)
@click.argument(
    "model", required=False, type=click.Path(exists=True, path_type=Path),
    metavar="CHECKPOINT|BUNDLE",
)  # fmt: skip
@data_option
@click.option(
    "--split", type=click.Choice(SPLITS), default="val",
    help="Part of the data to measure. What a model was chosen on (val) or trained on (train) "
    "flatters it; `irv2 data split --test` sets images aside.",
)  # fmt: skip
@click.option(
    "--server", metavar="HOST:PORT[,...]",
    help="Ask this server instead, or these in turn; or one at a socket, unix:PATH.",
)  # fmt: skip
@connection_options
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
    "--worst", "num_worst", type=click.IntRange(1, MAX_PICTURES), metavar="N",
    help="List the N images with the highest loss.",
)  # fmt: skip
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="PNG",
    help="Draw the confusion matrix and the reliability plot; with --worst, those N images.",
)  # fmt: skip
@click.option(
    "--ledger", "ledger_path", type=click.Path(dir_okay=False, path_type=Path), metavar="NPZ",
    help="Write every answer to this file, for `irv2 diff`.",
)  # fmt: skip
@json_option
def main(
    model: Path | None,
    data: Path | None,
    split: str,
    server: str | None,
    crops: str,
    legacy_average: bool,
    batch_size: int,
    workers: int | None,
    limit: int | None,
    device: str,
    bad_images: "BadImages",
    num_worst: int | None,
    out: Path | None,
    ledger_path: Path | None,
    as_json: bool,
    **connection: Any,  # noqa: ANN401 (click checked each)
) -> None:
    """Measure a model over DIR/val or another --split, each image counted exactly once.

    Gives top-1 and top-5 error, precision, recall and F1 of each class with exact 95 % intervals,
    the confusion matrix and the calibration error.
    """
    num_processes = world_size()
    if num_processes > 1:
        way_out = "leave out torchrun, or unset WORLD_SIZE"
        raise UsageError("irv2 eval", f"{num_processes} processes", "one", way_out)
    if bool(model) == bool(server):
        got = ("both a model and" if server else "neither a model nor") + " --server given"
        way_out = "name a checkpoint or a bundle, or pass --server HOST:PORT"
        raise UsageError("irv2 eval", got, "one of them", way_out)
    for path in (ledger_path, out):
        if path is not None:
            check_folder_of(path)
    if out is not None and num_worst is None:  # a missing matplotlib is told before the work
        from irv2.measures.picture import draw_evaluation
    if server:
        evaluation = _ask_server(server, connection, data, split, limit, bad_images)
    else:
        from irv2.evaluate import EvaluationOptions, evaluate_model

        assert model
        options = EvaluationOptions(batch_size=batch_size, workers=workers, crops=int(crops))
        evaluation = evaluate_model(model, data, limit, device, bad_images, options, split)
    if ledger_path is not None:
        write_atomically(ledger_path, evaluation.ledger.to_bytes())
    from irv2.measures.worst import draw_worst, worst, worst_table

    bad_answers = worst(evaluation, num_worst or 0)
    if out is not None and num_worst is None:
        draw_evaluation(evaluation, out)
    elif out is not None:
        draw_worst(evaluation, bad_answers, out)
    legacy = evaluation.legacy_errors() if legacy_average else {}
    if as_json:
        shown = {"worst": [answer.to_json() for answer in bad_answers]} if num_worst else {}
        print_json(evaluation.to_json() | legacy | shown)
        return
    click.echo(evaluation.headline())
    if legacy:
        click.echo(
            f"the original's average: top-1 error {legacy['legacy_top1_error']:.3f} %, "
            f"top-5 error {legacy['legacy_top5_error']:.3f} %"
        )
    click.echo(evaluation.to_text())
    if bad_answers:
        click.echo("\n" + worst_table(bad_answers, len(evaluation.images)))


def _ask_server(
    server: str,
    connection: dict[str, Any],
    data: Path | None,
    split: str,
    limit: int | None,
    bad_images: "BadImages",
) -> "Evaluation":
    from irv2.evaluate_server import evaluate_server

    context = click.get_current_context()
    given = [n for n in HERE_ONLY if context.get_parameter_source(n) is ParameterSource.COMMANDLINE]
    if given:
        got = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(
            "irv2 eval", f"{got} given with --server", "the server's own", "leave it out"
        )
    with connect(server, **connection) as client:
        return evaluate_server(client, data, limit, bad_images, split)
