"""`irv2-classify`: classify files, through a server or with a bundle on this machine."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tabulate import tabulate

from irv2.cli.options import FloatRange, json_option, print_json
from irv2.cli.program import Program
from irv2.cli.server_options import CONNECTION, connect, connection_options
from irv2.errors import InputError, UsageError
from irv2.results import DEFAULT_TOP_K, Result
from irv2.system.files import files_below, is_file_or_unreadable
from irv2.system.progress import progress
from irv2.system.text import one_line

if TYPE_CHECKING:
    from irv2.client import Client

FILES_AT_A_TIME = 8  # classified by a bundle between two updates of the progress bar


@click.command(
    cls=Program,
    sections={
        "Who classifies": "server bundle",
        "Answers": "top-k timeout-s",
        "Connection": CONNECTION,
    },
    examples=(
        "irv2-classify cat.jpg dogs/ --bundle best.bundle",
        "irv2-classify cat.jpg --server 127.0.0.1:8500 --json",
    ),
)
@click.argument(
    "images", nargs=-1, required=True, metavar="IMAGE_or_DIR_or_CSV...",
    type=click.Path(exists=True, path_type=Path),
)  # fmt: skip
@click.option("--server", metavar="HOST:PORT[,...]",
              help="Ask this server, or these in turn; or one at a socket, unix:PATH.")  # fmt: skip
@connection_options
@click.option("--bundle", type=click.Path(path_type=Path), metavar="DIR",
              help="Classify here, with the artefact that a server would choose.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(1, 2**31 - 1), default=DEFAULT_TOP_K, metavar="N",
              help="Number of classes per image.")  # fmt: skip
@click.option("--timeout-s", type=FloatRange(0, min_open=True),
              help="Time for a server's answers.  [default: 60 s per request]")  # fmt: skip
@json_option
def main(
    images: tuple[Path, ...],
    server: str | None,
    bundle: Path | None,
    top_k: int,
    timeout_s: float | None,
    as_json: bool,
    **connection: Any,  # noqa: ANN401 (click checked each)
) -> None:
    """Classify image files; for a folder or a list, every image file of it.

    A picture that says by EXIF how it is to be turned is said to be classified as stored, unless
    the model was trained with --orientation exif.

    Exit status 1 if any image could not be classified; the others are classified all the same.
    Results obtained before an error or Ctrl-C are still printed.
    """
    if bool(server) == bool(bundle):
        got = ("both --server and" if server else "neither --server nor") + " --bundle given"
        raise UsageError("classify", got, "one of them", "pass --server HOST:PORT or --bundle DIR")
    client = connect(server, **connection) if server else None  # a wrong address is told at once
    files = [file for path in images for file in image_files(path)]
    if client:
        answers = _by_server(client, files, top_k, timeout_s)
    else:
        assert bundle
        answers = _by_bundle(bundle, files, top_k)
    results: list[Result] = []
    try:
        for result in progress(answers, "classify", len(files), "images"):
            results.append(result)
    finally:  # keep what was answered before the server or the user ended it
        answered = files[: len(results)]
        if as_json and results:
            print_json(report(answered, results))
        elif results:
            click.echo(table(answered, results))
    sys.exit(1 if any(result.error for result in results) else 0)


def image_files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or all image files below a folder or of a list, sorted by name.

    Raises InputError if a folder or list holds no image file or can't be read.
    """
    from irv2.data.lists import is_list, read_list
    from irv2.images.decode import EXTENSIONS

    if is_list(path):
        yield from sorted(path.parent / row.path for row in read_list(path))
        return
    if not path.is_dir():
        yield path
        return
    found = sorted(
        file
        for file in files_below(path)
        if file.suffix.lower() in EXTENSIONS and is_file_or_unreadable(file)
    )
    if not found:
        raise InputError(path, "no image files in it", " ".join(sorted(EXTENSIONS)))
    yield from found


def report(files: list[Path], results: list[Result]) -> dict[str, Any]:
    """Build the JSON object.

    `model_id` is the id of the model that gave all results; null if a server switched models or
    gave no result: then each entry has its own.
    """
    model_ids = {result.model_id for result in results if result.model_id}
    return {
        "model_id": model_ids.pop() if len(model_ids) == 1 else None,
        "results": [_entry(file, result) for file, result in zip(files, results, strict=True)],
    }


def table(files: list[Path], results: list[Result]) -> str:
    """Build the table: a row per file with its classes, best first, or the reason for none."""
    rows = []
    for file, result in zip(files, results, strict=True):
        if result.error:
            text = str(result.error).removeprefix(f"{file}: ")
            rows.append((one_line(file), f"{result.error.reason}: {text}"))
        else:
            scores = [
                f"{one_line(score.label)} {100 * score.probability:.2f} %"
                for score in result.scores
            ]
            if result.orientation:
                scores.append(f"as stored (EXIF orientation {result.orientation} is not applied)")
            rows.append((one_line(file), ", ".join(scores)))
    return tabulate(rows, ("file", "classes"), disable_numparse=True)


def _by_server(
    client: "Client", files: list[Path], top_k: int, timeout_s: float | None
) -> Iterator[Result]:
    with client:
        yield from client.iter_classify(files, top_k, timeout_s)


def _by_bundle(path: Path, files: list[Path], top_k: int) -> Iterator[Result]:
    from irv2.bundle import Bundle

    bundle = Bundle.open(path)
    for start in range(0, len(files), FILES_AT_A_TIME):
        yield from bundle.classify(files[start : start + FILES_AT_A_TIME], top_k)


def _entry(file: Path, result: Result) -> dict[str, Any]:
    scores = [
        {"index": score.index, "label": score.label, "probability": score.probability}
        for score in result.scores
    ]
    error = result.error and {"reason": result.error.reason, "message": str(result.error)}
    model_id = result.model_id or None
    return {
        "file": str(file),
        "scores": scores,
        "error": error,
        "model_id": model_id,
        "orientation": result.orientation,
    }
