"""The models of the Open Inference Protocol: what tensors each takes and gives.

One model is served, under two names: `irv2` takes prepared images and gives logits, `irv2-files`
takes encoded pictures and gives classes. Requests are gRPC's messages, whatever the port; each port
writes the answer's tensors in its own way.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from google.rpc import error_details_pb2

from irv2.errors import InvalidRequest, UnknownModel
from irv2.inference import open_inference_pb2 as oip
from irv2.results import DEFAULT_TOP_K
from irv2.serve.pipeline.model import Model
from irv2.types import FloatArray, UInt8Array
from irv2.v1 import classifier_pb2

CurrentModel: TypeAlias = Callable[[], Model]  # which a reload changes
VERSION = "1"
TIMEOUT, TOP_K = "timeout", "top_k"  # parameters
# The parameters of Triton's that we keep (timeout) or that would not change the answer: priorities
# beside deadlines, sequences for a model without memory, HTTP's raw tensors.
HARMLESS = frozenset(
    {
        TIMEOUT,
        "priority",
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "binary_data",
        "binary_data_output",
        "binary_data_size",
    }
)
TYPED_AT_A_TIME = 16_384  # elements converted before the interpreter lock is released
LENGTH_BYTES = 4  # little endian, before each element of a raw tensor of BYTES


class Described(NamedTuple):
    """A tensor as metadata describe it; -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: list[int]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of an answer; its values lie flat."""

    name: str
    shape: tuple[int, ...]
    values: FloatArray | list[bytes]

    @property
    def datatype(self) -> str:
        """The protocol's word for the type of the values."""
        return "BYTES" if isinstance(self.values, list) else "FP32"

    def raw(self) -> bytes:
        """The values as both ports send them outside their messages' own types."""
        if isinstance(self.values, list):
            return raw_from_bytes(self.values)
        return self.values.astype("<f4").tobytes()


class TensorModel(Protocol):
    """One of the names under which the model is served."""

    name: str
    input_name: str
    num_dimensions: int  # of the input
    takes: frozenset[str]  # parameters beside HARMLESS
    has_batch_dimension: bool  # as Triton understands it: its configuration leaves that out

    def described(self, model: Model) -> tuple[Described, list[Described]]:
        """The input and the outputs."""

    async def answer(
        self, request: oip.ModelInferRequest, current_model: CurrentModel, deadline: float
    ) -> list[Tensor]:
        """All outputs, in the order of `described`. Raises RequestError."""


class Crops:
    """Prepared images in, logits out; a fault in any image refuses the whole."""

    name, input_name, num_dimensions = "irv2", "images", 4
    takes: frozenset[str] = frozenset()
    has_batch_dimension = True

    def described(self, model: Model) -> tuple[Described, list[Described]]:
        """Images as a bundle's models take them."""
        classes = len(model.description.classes)
        images = Described(self.input_name, "UINT8", [-1, *model.image_shape])
        return images, [Described("logits", "FP32", [-1, classes])]

    async def answer(
        self, request: oip.ModelInferRequest, current_model: CurrentModel, deadline: float
    ) -> list[Tensor]:
        """The logits of each image."""
        model = current_model()
        images = await input_images(request, model.image_shape, model.pipeline.limits.max_images)
        model = current_model()  # perhaps another one since, and the one before is closed
        _check_shape(request, model.image_shape, model.pipeline.limits.max_images)
        logits = await model.pipeline.infer(images, deadline, request.id)
        return [Tensor("logits", logits.shape, logits.ravel())]


class Files:
    """Encoded pictures in, as Classify takes them; the best classes out, or why there are none."""

    name, input_name, num_dimensions = "irv2-files", "files", 1
    takes = frozenset({TOP_K})
    has_batch_dimension = False

    def described(self, model: Model) -> tuple[Described, list[Described]]:
        """Files of any length; the second dimension of the answer is top_k."""
        outputs = [
            Described("classes", "BYTES", [-1, -1]),
            Described("probabilities", "FP32", [-1, -1]),
            Described("errors", "BYTES", [-1]),
        ]
        return Described(self.input_name, "BYTES", [-1]), outputs

    async def answer(
        self, request: oip.ModelInferRequest, current_model: CurrentModel, deadline: float
    ) -> list[Tensor]:
        """The best classes of each picture; one that fails has none, a reason, and fails alone."""
        model = current_model()
        files = input_files(request, model.pipeline.limits.max_images)
        top_k = min(parameter(request, TOP_K) or DEFAULT_TOP_K, len(model.description.classes))
        images = [classifier_pb2.Image(encoded=file) for file in files]
        asked = classifier_pb2.ClassifyRequest(images=images, top_k=top_k, id=request.id)
        results = (await model.pipeline.classify(asked, deadline)).results
        labels, probabilities, errors = [], np.zeros((len(files), top_k), np.float32), []
        for row, result in zip(probabilities, results, strict=True):
            labels += [score.label.encode() for score in result.scores] or [b""] * top_k
            row[: len(result.scores)] = [score.probability for score in result.scores]
            errors.append(_reason(result))
        return [
            Tensor("classes", probabilities.shape, labels),
            Tensor("probabilities", probabilities.shape, probabilities.ravel()),
            Tensor("errors", (len(files),), errors),
        ]


DEFAULT = Crops.name
MODELS: dict[str, TensorModel] = {model.name: model for model in (Crops(), Files())}


def tensor_model(field: str, name: str, version: str) -> TensorModel:
    """The model of this name and version. Raises UnknownModel, about `field`, if there is none."""
    if not is_served(name, version):
        got, names = f"{name!r} version {version!r}", " or ".join(map(repr, MODELS))
        raise UnknownModel(field, got, f"{names}, version {VERSION!r} or none")
    return MODELS[name]


def is_served(name: str, version: str) -> bool:
    """Whether we have a model of this name and version; an empty version is any."""
    return name in MODELS and version in ("", VERSION)


async def infer(
    request: oip.ModelInferRequest, current_model: CurrentModel, deadline: float
) -> list[Tensor]:
    """The outputs that the request names, or all of them. Raises RequestError."""
    asked = tensor_model("model_name", request.model_name, request.model_version)
    names = [output.name for output in asked.described(current_model())[1]]
    _check_numbers(request, asked, names)
    _check_parameters(request, asked)
    wanted = [output.name for output in request.outputs]
    if not set(wanted) <= set(names) or len(set(wanted)) < len(wanted):
        raise InvalidRequest("outputs", "an unknown tensor, or one twice", " ".join(names))
    outputs = {
        tensor.name: tensor for tensor in await asked.answer(request, current_model, deadline)
    }
    return [outputs[name] for name in wanted or names]


async def input_images(
    request: oip.ModelInferRequest, image_shape: tuple[int, int, int], most: int
) -> UInt8Array:
    """The input tensor, uint8 (N, S, S, 3), N up to `most`. Raises InvalidRequest."""
    _check_shape(request, image_shape, most)
    (tensor,) = request.inputs
    shape = tuple(tensor.shape)
    raw = _raw_contents(request, tensor)
    elements: bytes | Sequence[int] = tensor.contents.uint_contents if raw is None else raw
    if len(elements) != np.prod(shape):
        got = f"{len(elements)} elements"
        raise InvalidRequest("inputs[0]", got, f"{np.prod(shape)} for its shape")
    packed = elements if isinstance(elements, bytes) else await asyncio.to_thread(_packed, elements)
    images: UInt8Array = np.frombuffer(packed, np.uint8)
    return images.reshape(shape)


def _check_shape(
    request: oip.ModelInferRequest, image_shape: tuple[int, int, int], most: int
) -> None:
    (tensor,) = request.inputs
    if tensor.name != "images":
        raise InvalidRequest("inputs", repr(tensor.name), "the tensor images")
    num_images = tensor.shape[0]
    shape = (num_images, *image_shape)
    if tensor.datatype != "UINT8" or tuple(tensor.shape) != shape or not 0 < num_images <= most:
        got = f"{tensor.datatype} {list(tensor.shape)}"
        expected = f"UINT8 {['N', *image_shape]}, N from 1 to {most}"
        raise InvalidRequest("inputs[0]", got, expected)


def input_files(request: oip.ModelInferRequest, most: int) -> list[bytes]:
    """The input tensor, BYTES (N), N up to `most`. Raises InvalidRequest."""
    (tensor,) = request.inputs
    if tensor.name != "files":
        raise InvalidRequest("inputs", repr(tensor.name), "the tensor files")
    (num_files,) = tensor.shape
    if tensor.datatype != "BYTES" or not 0 < num_files <= most:
        got = f"{tensor.datatype} {list(tensor.shape)}"
        raise InvalidRequest("inputs[0]", got, f"BYTES ['N'], N from 1 to {most}")
    raw = _raw_contents(request, tensor)
    files = list(tensor.contents.bytes_contents) if raw is None else _bytes_from_raw(raw, most)
    if len(files) != num_files:
        raise InvalidRequest("inputs[0]", f"{len(files)} files", f"{num_files} for its shape")
    return files


def raw_from_bytes(elements: Iterable[bytes]) -> bytes:
    """A tensor of BYTES as it is sent raw."""
    lengths = ((len(each).to_bytes(LENGTH_BYTES, "little"), each) for each in elements)
    return b"".join(chain.from_iterable(lengths))


def _bytes_from_raw(raw: bytes, most: int) -> list[bytes]:
    """The elements of a raw tensor, up to one more than `most`."""
    elements: list[bytes] = []
    at = 0
    while at < len(raw) and len(elements) <= most:
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(raw[at:begin], "little")
        elements.append(raw[begin:at])
    if at > len(raw):
        got, expected = "an element goes beyond the end", "4 bytes of length before each element"
        raise InvalidRequest("inputs[0]", got, expected)
    return elements


def _raw_contents(
    request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor
) -> bytes | None:
    """The raw contents, or None where they are typed."""
    if not request.raw_input_contents:
        return None
    if tensor.HasField("contents"):
        raise InvalidRequest("raw_input_contents", "typed contents as well", "one of them")
    return request.raw_input_contents[0]


def _packed(elements: Sequence[int]) -> bytes:
    """Convert piece by piece; at once would hold the interpreter lock for up to a second."""
    starts = range(0, len(elements), TYPED_AT_A_TIME)
    try:
        return b"".join(bytes(elements[at : at + TYPED_AT_A_TIME]) for at in starts)
    except ValueError as error:
        raise InvalidRequest("inputs[0].contents", "an element above 255", "uint8") from error


def parameter(request: oip.ModelInferRequest, name: str) -> int:
    """A parameter that is an integer from 0 on; 0 if there is none. Raises InvalidRequest."""
    if name not in request.parameters:
        return 0
    value = request.parameters[name]
    kind = value.WhichOneof("parameter_choice")
    number = getattr(value, kind) if kind in ("int64_param", "uint64_param") else -1
    if number < 0:
        got = str(value).strip()
        raise InvalidRequest(f"parameters['{name}']", got, "an integer from 0 on")
    return int(number)


def _reason(result: classifier_pb2.Result) -> bytes:
    """The reason of an image's error; empty if it has none."""
    info = error_details_pb2.ErrorInfo()
    for detail in result.error.details:
        detail.Unpack(info)
    return str(info.reason).encode()


def _check_numbers(request: oip.ModelInferRequest, asked: TensorModel, names: list[str]) -> None:
    """Raise InvalidRequest where there are more parts than the model has a use for.

    Called before anything iterates over them: millions fit into a message, and all clients would
    wait.
    """
    if len(request.inputs) != 1:
        got, expected = f"{len(request.inputs)} tensors", f"the tensor {asked.input_name} alone"
        raise InvalidRequest("inputs", got, expected)
    if len(request.outputs) > len(names):
        got = f"{len(request.outputs)} tensors"
        raise InvalidRequest("outputs", got, f"{', '.join(names)}, or none named")
    if len(request.inputs[0].shape) != asked.num_dimensions:
        got = f"{len(request.inputs[0].shape)} dimensions"
        raise InvalidRequest("inputs[0]", got, f"{asked.num_dimensions} for {asked.input_name}")
    if len(request.raw_input_contents) > 1:
        got = f"{len(request.raw_input_contents)} of them"
        raise InvalidRequest("raw_input_contents", got, "one per input, or typed contents")


def _check_parameters(request: oip.ModelInferRequest, asked: TensorModel) -> None:
    """Raise InvalidRequest at a parameter that asks for another answer than ours."""
    places: list[tuple[str, Iterable[str]]] = [
        ("parameters", request.parameters.keys() - asked.takes),
        ("inputs[0].parameters", request.inputs[0].parameters),
        *(
            (f"outputs[{number}].parameters", output.parameters)
            for number, output in enumerate(request.outputs)
        ),
    ]
    parameter(request, TIMEOUT)  # has counted already if it makes sense
    for field, names in places:
        for name in names:
            if name not in HARMLESS:
                raise InvalidRequest(f"{field}[{name!r}]", "not supported", way_out="leave it out")
