"""A checkpoint's model files: every precision as ONNX, and engines if they are asked for."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from irv2.checkpoint import Checkpoint
from irv2.convert.engine.build import choose_flavour, engine_artifact
from irv2.convert.engine.options import EngineOptions
from irv2.convert.gate.limits import CONFIDENCE
from irv2.convert.gate.tolerance import Tolerance, tolerance_for
from irv2.convert.onnx.calibrate import CalibrationOptions, calibrate, choose_images
from irv2.convert.onnx.choose_method import choose_method
from irv2.convert.onnx.half import Half, require_fp16_range, write_half
from irv2.convert.onnx.int8 import write_int8
from irv2.convert.onnx.sensitivity import sensitive_blocks
from irv2.convert.onnx.trial import load_images
from irv2.convert.provenance import new_artifact
from irv2.data.dataset import BadImages, ImageFolder
from irv2.data.samples import is_sample
from irv2.errors import EngineError, UsageError
from irv2.evaluate import load_batches
from irv2.images.preprocess import Preprocess
from irv2.manifest import ONNX_FILE, Artifact, Manifest, PerClass, Precision, new_manifest
from irv2.runners.choose import INT8_CPU

logger = logging.getLogger(__name__)

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
DEFAULT_MAX_BATCH = 64
NUM_RANGE_IMAGES = 8  # on which fp16's range is tried


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What is made, and how strictly it is judged."""

    precisions: tuple[str, ...] | None = None  # None: the default list
    trt: bool = False
    engine: EngineOptions = field(default_factory=EngineOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    max_batch: int = DEFAULT_MAX_BATCH
    limit: int | None = None
    bad_images: BadImages = "error"
    tolerance_top1: float | None = None  # points; None: by precision
    tolerance_top5: float | None = None
    max_disagreement: float | None = None  # percent of the images; None: by precision
    accept_chance: bool = False
    per_class: PerClass = "fail"
    confidence: float = CONFIDENCE

    def __post_init__(self) -> None:
        unknown = [name for name in self.precisions or () if name not in PRECISIONS]
        if unknown:
            raise UsageError(
                "--precision", f"{unknown[0]} can't be exported", " or ".join(PRECISIONS)
            )
        if self.calibration.folder is not None and "int8" not in self.wanted:
            raise UsageError(
                "--calibration", "int8 is not made", way_out="name int8 in --precision too"
            )
        if self.calibration.method != "auto" and "int8" not in self.wanted:
            raise UsageError(
                "--calibration-method", "int8 is not made", way_out="name int8 in --precision too"
            )
        if self.trt:
            self.engine.profiles_up_to(self.max_batch)
        elif self.engine != EngineOptions():
            raise UsageError("options of an engine", "no engine is built", way_out="pass --trt")

    @property
    def wanted(self) -> list[Precision]:
        """The precisions to make, in one order; always float32, which the others are made from."""
        default = ("fp32", "fp16", "int8") if self.trt else ("fp32", "int8")
        asked = self.precisions or default
        return [name for name in PRECISIONS if name == "fp32" or name in asked]

    def worth_making(self, images: ImageFolder) -> list[Precision]:
        """Those of `wanted` that were asked for, or that this many images can pass at all."""
        if self.precisions is not None:
            return self.wanted
        kept: list[Precision] = ["fp32"]
        for name in self.wanted[1:]:
            least = self.tolerance(name, images).fewest_images
            if len(images) >= least:
                kept.append(name)
            else:
                logger.warning(
                    "%s is left out: %d images can't pass it, even with every answer alike; %d "
                    "can (make it all the same with --precision %s)",
                    name,
                    len(images),
                    least,
                    name,
                )
        return kept

    def tolerance(self, precision: Precision, images: ImageFolder) -> Tolerance:
        """What the gate accepts of an artefact that is judged on these images."""
        return tolerance_for(
            precision,
            is_sample=is_sample(images.data),
            top1_points=self.tolerance_top1,
            top5_points=self.tolerance_top5,
            disagreement_points=self.max_disagreement,
            accept_chance=self.accept_chance,
            per_class=self.per_class,
            confidence=self.confidence,
        )


DEFAULTS = ExportOptions()


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """Model files in a folder of their own, and the checkpoint that they claim to equal."""

    checkpoint: Checkpoint
    checkpoint_sha256: str
    folder: Path
    artifacts: list[Artifact]

    @property
    def manifest(self) -> Manifest:
        """The bundle.json of all these files, before any is judged."""
        source = self.checkpoint.source(self.checkpoint_sha256)
        preprocess, classes = self.checkpoint.preprocess.to_json(), self.checkpoint.classes
        return new_manifest(source, preprocess, classes, self.artifacts, {})


def make_candidate(
    checkpoint: Checkpoint,
    checkpoint_sha256: str,
    folder: Path,
    options: ExportOptions,
    val: ImageFolder,
) -> Candidate:
    """Write the model files into `folder`, not yet judged.

    A few of `val`, the evaluation images, show whether fp16's range suffices; int8 is calibrated
    with other images. Raises EngineError, and UsageError if there are none to calibrate with.
    """
    from irv2.convert.onnx.float32 import versions, write_onnx

    wanted = options.worth_making(val.first(options.limit))
    training_images = None
    if "int8" in wanted:
        _require_finite(checkpoint)
        training_images = choose_images(val, options.calibration, options.bad_images)
    # First, so that an option that the library lacks is refused before any work is done.
    flavour = choose_flavour(options.engine) if options.trt else None
    logger.info("export: %s", ONNX_FILE)
    onnx_path = folder / ONNX_FILE
    write_onnx(checkpoint, checkpoint_sha256, onnx_path)
    fp32 = new_artifact(onnx_path, "fp32", options.max_batch, checkpoint_sha256, versions())
    if "fp16" in wanted:
        few = val.first(NUM_RANGE_IMAGES)
        for batch in load_batches(few, checkpoint.preprocess, len(few), options.bad_images):
            require_fp16_range(onnx_path, batch.images)
    artifacts = [fp32, *_halves(fp32, folder, wanted)]
    if training_images is not None:
        points = options.tolerance("int8", val).top1_points
        artifacts += _int8(fp32, folder, checkpoint.preprocess, options, training_images, points)
    if flavour is not None:
        models = [artifact for artifact in artifacts if artifact.file != INT8_CPU]
        artifacts += [engine_artifact(model, folder, flavour, options.engine) for model in models]
    return Candidate(
        checkpoint=checkpoint,
        checkpoint_sha256=checkpoint_sha256,
        folder=folder,
        artifacts=artifacts,
    )


def _require_finite(checkpoint: Checkpoint) -> None:
    """Raise EngineError if a weight can't be stored in 8 bits; in float32 the gate finds it."""
    for name, tensor in checkpoint.state_dict.items():
        if not tensor.isfinite().all():
            raise EngineError(
                "int8",
                f"{name} holds values that are not finite",
                "finite weights",
                "use another checkpoint; what this one answers, --precision fp32 shows",
            )


def _halves(fp32: Artifact, folder: Path, wanted: list[Precision]) -> list[Artifact]:
    halves: tuple[Half, ...] = ("fp16", "bf16")
    return [write_half(fp32, folder, precision) for precision in halves if precision in wanted]


def _int8(
    fp32: Artifact,
    folder: Path,
    preprocess: Preprocess,
    options: ExportOptions,
    training_images: ImageFolder,
    tolerance_points: float,
) -> list[Artifact]:
    """Calibrate, choose ranges, find the blocks that 8 bits would spoil, and write both files."""
    path, bad_images = folder / fp32.file, options.bad_images
    seed = options.calibration.seed
    calibration = calibrate(path, training_images, preprocess, seed, bad_images)
    model, images = onnx.load(path), load_images(calibration, preprocess, bad_images)
    cpu_logits = None
    if options.calibration.method == "auto":
        calibration, cpu_logits = choose_method(model, calibration, images)
    else:
        calibration = calibration.using(options.calibration.method)
    in_float32 = sensitive_blocks(model, calibration, images, tolerance_points, cpu_logits)
    return write_int8(model, fp32, folder, calibration, in_float32)
