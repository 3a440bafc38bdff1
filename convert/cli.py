"""`irv2 export` and `irv2 verify`: make a bundle, and judge it again."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from irv2.cli.options import (
    FloatRange,
    bad_images_option,
    data_option,
    json_option,
    limit_option,
    print_json,
)
from irv2.cli.program import Program
from irv2.cli.server_options import CONNECTION, connect, connection_options
from irv2.cli.signing_options import (
    require_signature_option,
    signer_of_options,
    signing_options,
)
from irv2.convert.engine.options import EngineOptions, engine_options
from irv2.errors import ParityError, UsageError
from irv2.manifest import SIGNATURE
from irv2.system.files import require_new_folder

if TYPE_CHECKING:
    from irv2.client import Client
    from irv2.convert.gate.report import Report
    from irv2.convert.onnx.ranges import Method
    from irv2.data.dataset import BadImages
    from irv2.manifest import PerClass
    from irv2.trust.keys import Signer


@click.command(
    cls=Program,
    sections={
        "What to make, judged on what": "data out precision trt triton",
        "The gate": "tolerance-top1 tolerance-top5 max-disagreement per-class confidence limit "
        "bad-images accept-chance",
        "Calibration of int8": "calibration calibration-images calibration-method seed",
        "Engines": "max-batch profile workspace-mb timing-cache hardware-compatibility "
        "version-compatible",
    },
    examples=(
        "irv2-export runs/first/best.pt --data pictures",
        "irv2-export runs/first/best.pt --data pictures --precision fp32,bf16,int8 --out b.bundle",
    ),
)
@click.argument("checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--trt", is_flag=True, help="Build a TensorRT engine too.")
@click.option(
    "--precision", metavar="LIST",
    help="Precisions, comma-separated: fp32 (always made), fp16, bf16, int8.  [default: fp32,int8; "
    "with --trt fp16 too; of these, what too few images can judge is left out]",
)  # fmt: skip
@data_option
@click.option(
    "--calibration", type=click.Path(path_type=Path), metavar="DIR",
    help="Images that int8 is calibrated with, at any depth.  [default: train/ of the data]",
)  # fmt: skip
@click.option(
    "--calibration-images", type=click.IntRange(1), default=256, metavar="N",
    help="How many of them, drawn at random.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=0, help="Seed of that draw.")
@click.option(
    "--calibration-method", type=click.Choice(["auto", "minmax", "percentile", "mse"]),
    default="auto",
    help="Range of each activation: all values, 99.99 % of them, that of the least squared error, "
    "or what changes the fewest answers to the calibration images.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="BUNDLE",
    help="The bundle's folder.  [default: CHECKPOINT with the suffix .bundle]",
)  # fmt: skip
@click.option(
    "--triton", type=click.Path(path_type=Path), metavar="DIR",
    help="Write a model repository of NVIDIA Triton too, to this new folder.",
)  # fmt: skip
@limit_option
@click.option(
    "--tolerance-top1", type=FloatRange(0, 100, min_open=True), metavar="POINTS",
    help="Top-1 loss the gate accepts, in percentage points.  [default: by precision]",
)  # fmt: skip
@click.option(
    "--tolerance-top5", type=FloatRange(0, 100, min_open=True), metavar="POINTS",
    help="Top-5 loss the gate accepts, in percentage points.  [default: by precision]",
)  # fmt: skip
@click.option(
    "--max-disagreement", type=FloatRange(0, 100, min_open=True), metavar="POINTS",
    help="Images that may get another best class than from the checkpoint, in percent.  "
    "[default: by precision]",
)  # fmt: skip
@click.option(
    "--accept-chance", is_flag=True,
    help="Judge a checkpoint that is not shown to be better than guessing; every report says so.",
)  # fmt: skip
@click.option(
    "--per-class", type=click.Choice(["fail", "report"]), default="fail",
    help="On a class that is significantly worse: fail the artefact, or only report it.",
)  # fmt: skip
@click.option(
    "--confidence", type=FloatRange(0.5, 1, max_open=True), default=0.95,
    help="One-sided confidence of the gate's limits.",
)  # fmt: skip
@click.option(
    "--max-batch", type=click.IntRange(1, 1024), default=64, metavar="N",
    help="Images per batch that the artefacts are made for, at most.",
)  # fmt: skip
@engine_options
@bad_images_option
@json_option
def export(
    checkpoint: Path,
    trt: bool,
    precision: str | None,
    data: Path | None,
    calibration: Path | None,
    calibration_images: int,
    seed: int,
    calibration_method: 'Method | Literal["auto"]',
    out: Path | None,
    triton: Path | None,
    limit: int | None,
    tolerance_top1: float | None,
    tolerance_top5: float | None,
    max_disagreement: float | None,
    accept_chance: bool,
    per_class: "PerClass",
    confidence: float,
    max_batch: int,
    bad_images: "BadImages",
    as_json: bool,
    **engine: Any,  # noqa: ANN401 (the fields of EngineOptions)
) -> None:
    """Convert CHECKPOINT to ONNX, judge it against the checkpoint, publish the bundle.

    The gate classifies every image of DIR/val with both. Where it is not met nothing is
    published, the exit status is 3, and BUNDLE.rejected/parity.md says why; the answers beside it
    are for `irv2 diff`.
    """
    from irv2.bundle import Bundle
    from irv2.convert.candidate import ExportOptions
    from irv2.convert.export import export as run_export
    from irv2.convert.onnx.calibrate import CalibrationOptions
    from irv2.convert.publish.evidence import rejected_folder
    from irv2.delivery.triton import write_repository

    if triton:
        require_new_folder(triton)
    options = ExportOptions(
        precisions=_names(precision),
        trt=trt,
        engine=EngineOptions(**engine),
        calibration=CalibrationOptions(
            folder=calibration,
            num_images=calibration_images,
            seed=seed,
            method=calibration_method,
        ),
        max_batch=max_batch,
        limit=limit,
        bad_images=bad_images,
        tolerance_top1=tolerance_top1,
        tolerance_top5=tolerance_top5,
        max_disagreement=max_disagreement,
        accept_chance=accept_chance,
        per_class=per_class,
        confidence=confidence,
    )
    report = run_export(checkpoint, data, out, options, partial(_print, as_json=as_json))
    if report.failed:
        raise ParityError(
            report.bundle,
            report.failure,
            way_out=f"not published; see {rejected_folder(report.bundle)}/parity.md",
        )
    if not as_json:
        click.echo(f"\npublished {report.bundle} (id {report.manifest.id[:12]})")
    if triton:
        names = write_repository(Bundle.open(report.bundle), triton)
        if not as_json:
            click.echo(f"{triton}: {', '.join(names)}")


@click.command(
    cls=Program,
    sections={
        "What to judge": "data server rebuild bad-images",
        "Signature": "key certificate chain drop-signature require-signature",
        "Connection": CONNECTION,
    },
    examples=(
        "irv2 verify best.bundle --data pictures",
        "irv2 verify best.bundle --data pictures --server 127.0.0.1:8500",
    ),
)
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@data_option
@click.option(
    "--server", metavar="HOST:PORT",
    help="Ask this running server instead, with image files; only prints.",
)  # fmt: skip
@click.option(
    "--rebuild", is_flag=True,
    help="First make its engines anew, for this machine; a bundle that fails stays as it was.",
)  # fmt: skip
@signing_options
@click.option("--drop-signature", is_flag=True, help="Leave a signed bundle unsigned.")
@require_signature_option
@connection_options
@bad_images_option
@json_option
def verify(
    bundle: Path,
    data: Path | None,
    server: str | None,
    rebuild: bool,
    key: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    drop_signature: bool,
    require_signature: Path | None,
    bad_images: "BadImages",
    as_json: bool,
    **connection: Any,  # noqa: ANN401 (click checked each)
) -> None:
    """Judge BUNDLE again, on this machine, and write the result into it.

    DIR holds the images of the export. Neither the checkpoint nor torch is needed. With --server
    every image has to get the decisions that BUNDLE records of what the server runs, else it is
    named and the exit status is 3; no engine is needed here.

    The result is new content, so a signature no longer holds: a signed BUNDLE is judged with --key,
    which signs it again if it passes, or with --drop-signature.
    """
    if server and rebuild:
        raise UsageError("verify", "--server and --rebuild", "one of them")
    signer = signer_of_options(key, certificate, chain)
    if require_signature:
        _require_signature(bundle, require_signature)
    if server:
        with connect(server, **connection) as client:
            _verify_server(bundle, client, data, bad_images, as_json)
        return
    if (bundle / SIGNATURE).is_file() and not signer and not drop_signature:
        raise _would_be_void(bundle)
    from irv2.convert.publish.evidence import rejected_folder
    from irv2.convert.rebuild import rebuild as run_rebuild
    from irv2.convert.verify import verify as run_verify

    show = partial(_print, as_json=as_json)
    report = (run_rebuild if rebuild else run_verify)(bundle, data, bad_images, show=show)
    if signer or drop_signature:
        _renew_signature(bundle, signer, bool(report.failed), rebuild)
    if report.failed:
        left = f"the old one is still there; see {rejected_folder(report.bundle)}/parity.md"
        way_out = left if rebuild else "it is not served"
        raise ParityError(report.bundle, report.failure, way_out=way_out)


def _require_signature(bundle: Path, trusted: Path) -> None:
    from irv2.bundle import Bundle
    from irv2.trust.check import require_signature
    from irv2.trust.keys import read_trusted, signer_of

    signature = require_signature(Bundle.open(bundle), read_trusted(trusted))
    click.echo(f"{bundle}: signed by {signer_of(signature)}", err=True)


def _would_be_void(bundle: Path) -> UsageError:
    from irv2.trust.keys import signer_of
    from irv2.trust.signature import read_signature

    signature = read_signature(bundle)
    assert signature is not None
    return UsageError(
        bundle,
        f"is signed by {signer_of(signature)}, and a new verdict makes that void",
        "--key to sign it again, or --drop-signature",
    )


def _renew_signature(
    bundle: Path, signer: "Signer | None", has_failed: bool, was_rebuilt: bool
) -> None:
    """Sign what has passed; a failed rebuild left the bundle, and its signature, as they were."""
    from irv2.trust.keys import signer_of
    from irv2.trust.sign import renew

    if has_failed and was_rebuilt:
        return
    signature = renew(bundle, None if has_failed else signer)
    state = f"signed by {signer_of(signature)}" if signature else "unsigned"
    click.echo(f"{bundle}: {state}", err=True)


def _names(precision: str | None) -> tuple[str, ...] | None:
    return None if precision is None else tuple(name.strip() for name in precision.split(","))


def _verify_server(
    bundle: Path, client: "Client", data: Path | None, bad_images: "BadImages", as_json: bool
) -> None:
    from irv2.convert.verify_server import verify_server

    report = verify_server(bundle, client, data, bad_images)
    print_json(report.to_json()) if as_json else click.echo(report.to_text())
    if report.differing:
        got = f"{len(report.differing)} of {report.n} images get other decisions"
        raise ParityError(report.server, got, "those that the bundle records", "see the list above")


def _print(report: "Report", as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(report.to_table())
