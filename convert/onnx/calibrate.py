"""The range of every activation over training images, from which int8 scales follow.

The float32 model runs over the images once. The graph itself reduces each activation to one
smallest and one largest value per image, exactly, and to an even sample of its positions. The
samples are counted in histograms, from which the other methods estimate their ranges. So memory
does not grow with the number of images. The result is kept in the user's cache.
"""

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from irv2.convert.onnx.ranges import METHODS, PERCENTAGE, Histogram, Method, Range, estimate
from irv2.data.dataset import BadImages, ImageFolder, find_images, open_split, splits_of
from irv2.data.hashes import hash_files, same_size
from irv2.errors import DataError, EngineError, UsageError
from irv2.evaluate import load_batches
from irv2.images.preprocess import Preprocess, library_versions
from irv2.runners.onnx import import_onnxruntime
from irv2.system.arrays import bytes_from_arrays, load_arrays
from irv2.system.cache import cached
from irv2.system.files import file_sha256
from irv2.system.machine import num_cores
from irv2.system.progress import Progress
from irv2.system.stop import raise_if_stopped
from irv2.types import FloatArray, IntArray

logger = logging.getLogger(__name__)

DEFAULT_IMAGES = 256
BATCH_SIZE = 2  # every activation of a batch is alive until it is reduced: 0.2 GB per image
_SMALLEST, _LARGEST, _SAMPLE = ".smallest", ".largest", ".sample"
_SAMPLED_SIDE = 8  # positions per row and column; channels, which differ more, are all taken


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """Which images, those of `folder`, or of the data's train/ if it is None, and which ranges."""

    folder: Path | None = None
    num_images: int = DEFAULT_IMAGES
    seed: int = 0
    method: Method | Literal["auto"] = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one pass over the calibration images found."""

    ranges_by: dict[Method, dict[str, Range]]  # method -> activation -> smallest, largest value
    labels: IntArray  # (n,); -1 if unknown
    logits: FloatArray  # (n, num_classes): the float32 model's own
    images: ImageFolder
    origin: dict[str, str]  # seed and hash of the images
    method: Method = "minmax"

    @property
    def ranges(self) -> dict[str, Range]:
        """Activation -> range, by the method in use."""
        return self.ranges_by[self.method]

    @property
    def record(self) -> dict[str, str]:
        """How it was made, for the metadata of what is made of it."""
        return {
            "calibration_method": self.method,
            **self.origin,
            "calibration_images": str(len(self.labels)),
        }

    def using(self, method: Method) -> Self:
        """The same with another method's ranges, which come from the same pass."""
        return replace(self, method=method)

    def to_bytes(self) -> bytes:
        """The contents of a file in the cache."""
        return bytes_from_arrays(
            names=list(self.ranges),
            ranges=[list(self.ranges_by[method].values()) for method in METHODS],
            labels=self.labels,
            logits=self.logits,
        )

    @classmethod
    def load(cls, content: bytes, images: ImageFolder, origin: dict[str, str]) -> Self:
        """Read `to_bytes` back; raises ValueError if it is damaged."""
        names, limits, labels, logits = load_arrays(content, "names", "ranges", "labels", "logits")
        ranges_by = {
            method: dict(zip(names.tolist(), map(tuple, pairs), strict=True))
            for method, pairs in zip(METHODS, limits.tolist(), strict=True)
        }
        return cls(ranges_by=ranges_by, labels=labels, logits=logits, images=images, origin=origin)


def choose_images(
    val: ImageFolder, options: CalibrationOptions, bad_images: BadImages = "error"
) -> ImageFolder:
    """Draw images from the train/ beside `val`, or from a given folder, unlabelled, at any depth.

    They are never those of `val`, by which the gate judges, nor copies of them. Raises UsageError
    if there is no train/, or nothing else in it.
    """
    data = val.data
    if options.folder is not None:
        images = find_images(options.folder)
    elif "train" in splits_of(data):
        images = open_split(data, "train", val.classes, bad_images)
    else:
        raise UsageError(
            "int8",
            f"no folder train/ in {data}",
            "training images to calibrate with",
            "pass --calibration DIR, or --precision fp32",
        )
    chosen = np.random.default_rng(options.seed).permutation(len(images))[: options.num_images]
    return _without_copies(images.subset(np.sort(chosen).tolist()), val)


def _without_copies(images: ImageFolder, val: ImageFolder) -> ImageFolder:
    judged_by = set(hash_files(same_size(val, images)))
    kept = [i for i, sha256 in enumerate(hash_files(images)) if sha256 not in judged_by]
    if not kept:
        raise UsageError(
            images.place,
            f"all {len(images)} calibration images are in {val.place} too",
            "images that the gate does not judge by",
            "pass --calibration DIR",
        )
    if len(kept) < len(images):
        logger.warning(
            "notice: %d of %d calibration images are left out: they are in %s too, by which the "
            "gate judges",
            len(images) - len(kept),
            len(images),
            val.place,
        )
    return images.subset(kept)


def calibrate(
    model_path: Path,
    images: ImageFolder,
    config: Preprocess,
    seed: int,
    bad_images: BadImages = "error",
) -> Calibration:
    """Ranges of the float32 model's activations over `images`, from the cache if they are there."""
    model = onnx.load(model_path)
    names = observed(model.graph)
    images_sha256 = _content_sha256(images)
    origin = {
        "calibration_seed": str(seed),
        "calibration_images_sha256": images_sha256,
    }
    key = {
        "model": file_sha256(model_path),
        "preprocess": config.sha256,
        "images": images_sha256,
        "methods": [*METHODS, PERCENTAGE, _SAMPLED_SIDE],
        "activations": names,
        "versions": {**library_versions(), "onnxruntime": import_onnxruntime().__version__},
    }

    def load(content: bytes) -> Calibration:
        calibration = Calibration.load(content, images, origin)
        logger.info("calibrate: ranges over %d images, kept from before", len(calibration.labels))
        return calibration

    return cached(
        "calibration",
        key,
        load=load,
        make=partial(_observe, model, names, images, config, origin, bad_images),
        dump=Calibration.to_bytes,
    )


def observed(graph: onnx.GraphProto) -> list[str]:
    """Activations whose range matters: the first convolution's input and whatever follows it.

    Not what only a ReLU reads: it is never stored in 8 bits.
    """
    readers: dict[str, list[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    first = next(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    names = [graph.node[first].input[0]]
    names += [name for node in list(graph.node)[first:] for name in node.output]
    return [name for name in names if readers.get(name) != ["Relu"]]


def _observe(
    model: onnx.ModelProto,
    names: list[str],
    images: ImageFolder,
    config: Preprocess,
    origin: dict[str, str],
    bad_images: BadImages,
) -> Calibration:
    session = _session(_with_observers(model, names))
    suffixes = (_SMALLEST, _LARGEST, _SAMPLE)
    wanted = ["logits", *(name + suffix for suffix in suffixes for name in names)]
    histograms = [Histogram() for _ in names]
    logits, smallest, largest, labels = [], [], [], []
    with Progress("calibrate", len(images), "images") as bar:
        for batch in load_batches(images, config, BATCH_SIZE, bad_images):
            answers, *seen = session.run(wanted, {"images": batch.images})
            logits.append(answers)
            labels.append(batch.labels)
            smallest.append([column.min() for column in seen[: len(names)]])
            largest.append([column.max() for column in seen[len(names) : -len(names)]])
            for histogram, sample in zip(histograms, seen[-len(names) :], strict=True):
                histogram.add(sample)
            bar.advance(len(batch.files))
    if not logits:
        raise DataError(images.place, "no image to calibrate with", "at least one")
    lows, highs = np.min(smallest, axis=0).tolist(), np.max(largest, axis=0).tolist()
    estimates = list(map(estimate, histograms, lows, highs))
    return Calibration(
        ranges_by={
            method: {name: found[method] for name, found in zip(names, estimates, strict=True)}
            for method in METHODS
        },
        labels=np.concatenate(labels),
        logits=np.concatenate(logits),
        images=images,
        origin=origin,
    )


def _with_observers(model: onnx.ModelProto, names: list[str]) -> onnx.ModelProto:
    """The model with three more outputs per activation: extremes of each image, and a sample."""
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.value_info, *graph.output]
    }
    for name in names:
        _, _, *sides = shape = shapes[name]
        steps = np.array([1, *(-(-side // _SAMPLED_SIDE) for side in sides)])
        ends = np.full_like(steps, np.iinfo(np.int64).max)
        axes = np.arange(1, len(shape))
        arrays = {"axes": axes, "steps": steps, "starts": steps // 2, "ends": ends}
        for part, array in arrays.items():
            graph.initializer.append(numpy_helper.from_array(array, f"{name}.{part}"))
        sliced = [name, *(f"{name}.{part}" for part in ("starts", "ends", "axes", "steps"))]
        reduced = [name, f"{name}.axes"]
        graph.node.append(helper.make_node("Slice", sliced, [name + _SAMPLE]))
        graph.output.append(
            helper.make_tensor_value_info(name + _SAMPLE, TensorProto.FLOAT, [None] * len(shape))
        )
        for operator, suffix in (("ReduceMin", _SMALLEST), ("ReduceMax", _LARGEST)):
            output = name + suffix
            graph.node.append(helper.make_node(operator, reduced, [output], keepdims=0))
            graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N"]))
    return model


def _session(model: onnx.ModelProto) -> Any:  # noqa: ANN401 (onnxruntime has no types)
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_cores()
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base class
        raise_if_stopped()
        raise EngineError("calibration", f"ONNX Runtime can't load the model ({error})") from error


def _content_sha256(images: ImageFolder) -> str:
    """Of images and labels in their order, which is that of the logits in the cache."""
    rows = [
        f"{sha} {label}\n" for sha, label in zip(hash_files(images), images.labels, strict=True)
    ]
    return hashlib.sha256("".join(rows).encode()).hexdigest()
