"""The Open Inference Protocol v2 beside our own: the model `irv2` for existing clients.

Tensors as in a bundle: `images` UINT8 [N, S, S, 3] RGB, already resized and cropped, in; `logits`
FP32 [N, classes] out. Raw requests get raw answers, typed requests typed ones. Of Triton's
extensions there are those that its clients ask for: configuration, statistics, repository index.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from irv2 import __version__
from irv2.errors import InvalidRequest, UnknownModel
from irv2.inference import open_inference_pb2 as oip
from irv2.inference import open_inference_pb2_grpc
from irv2.serve.pipeline.model import Model
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.request_log import Context
from irv2.serve.rpc.triton import model_config, model_statistics
from irv2.types import FloatArray, UInt8Array

SERVICE = "inference.GRPCInferenceService"
MODEL_NAME, MODEL_VERSION = "irv2", "1"
EXTENSIONS = ("model_configuration", "model_repository", "statistics")
# The parameters of Triton's that we keep (timeout) or that would not change the answer: priorities
# beside deadlines, sequences for a model without memory, HTTP's raw tensors.
HARMLESS = frozenset(
    {
        "timeout",
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


class OpenInference(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The gRPC service, one per server."""

    def __init__(
        self,
        current_model: Callable[[], Model],
        calls: Calls,
        is_ready: Callable[[], bool],
    ) -> None:
        self._current_model, self._calls, self._is_ready = current_model, calls, is_ready

    async def ServerLive(  # noqa: N802 (here and below: gRPC's names)
        self, request: oip.ServerLiveRequest, context: object
    ) -> oip.ServerLiveResponse:
        """Whether the server is alive: always, if it answers."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: oip.ServerReadyRequest, context: object
    ) -> oip.ServerReadyResponse:
        """Whether the server is ready, like health and /readyz."""
        return oip.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: object
    ) -> oip.ModelReadyResponse:
        """Whether this is our model, and ready."""
        ready = _is_ours(request.name, request.version) and self._is_ready()
        return oip.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: object
    ) -> oip.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return oip.ServerMetadataResponse(name="irv2", version=__version__, extensions=EXTENSIONS)

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse | None:
        """Describe the tensors by name, type and shape."""
        call = self._calls.begin(context, "ModelMetadata")
        return await self._calls.unary(self._metadata(request), call)

    async def ModelInfer(  # noqa: N802
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse | None:
        """Answer a batch with its logits; a fault in any part of it refuses the whole."""
        num_images = request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 0
        call = self._calls.begin(
            context, "ModelInfer", request.id, num_images, timeout_ms=_timeout_ms(request)
        )
        return await self._calls.unary(self._infer(request, call.deadline), call)

    async def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: Context
    ) -> oip.ModelConfigResponse | None:
        """Describe batching and tensors as Triton would."""
        call = self._calls.begin(context, "ModelConfig")
        return await self._calls.unary(self._config(request), call)

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse | None:
        """Count what the model has done since it took over."""
        call = self._calls.begin(context, "ModelStatistics")
        return await self._calls.unary(self._statistics(request), call)

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: object
    ) -> oip.RepositoryIndexResponse:
        """List the one model."""
        state = "READY" if self._is_ready() else "UNAVAILABLE"
        if request.ready and state != "READY":
            return oip.RepositoryIndexResponse()
        entry = oip.RepositoryIndexResponse.ModelIndex(
            name=MODEL_NAME, version=MODEL_VERSION, state=state
        )
        return oip.RepositoryIndexResponse(models=[entry])

    async def _config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        _check_model("name", request.name, request.version)
        config = model_config(self._current_model())
        config.name = MODEL_NAME
        return oip.ModelConfigResponse(config=config)

    async def _statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        _check_model("name", request.name or MODEL_NAME, request.version)
        statistics = model_statistics(self._current_model().statistics)
        statistics.name, statistics.version = MODEL_NAME, MODEL_VERSION
        return oip.ModelStatisticsResponse(model_stats=[statistics])

    async def _metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        _check_model("name", request.name, request.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        model = self._current_model()
        return oip.ModelMetadataResponse(
            name=MODEL_NAME,
            versions=[MODEL_VERSION],
            platform=model.description.backend,
            inputs=[tensor(name="images", datatype="UINT8", shape=[-1, *model.image_shape])],
            outputs=[
                tensor(name="logits", datatype="FP32", shape=[-1, len(model.description.classes)])
            ],
        )

    async def _infer(
        self, request: oip.ModelInferRequest, deadline: float
    ) -> oip.ModelInferResponse:
        _check_model("model_name", request.model_name, request.model_version)
        _check_numbers(request)
        _check_parameters(request)
        if any(output.name != "logits" for output in request.outputs):
            raise InvalidRequest("outputs", "an unknown tensor", "logits")
        model = self._current_model()
        images = await input_images(request, model.image_shape, model.pipeline.limits.max_images)
        logits = await model.pipeline.infer(images, deadline, request.id)
        return _response(request, logits)


async def input_images(
    request: oip.ModelInferRequest, image_shape: tuple[int, int, int], most: int
) -> UInt8Array:
    """The input tensor, uint8 (N, S, S, 3), N up to `most`. Raises InvalidRequest."""
    (tensor,) = request.inputs
    if tensor.name != "images":
        raise InvalidRequest("inputs", repr(tensor.name), "the tensor images")
    num_images = tensor.shape[0]
    shape = (num_images, *image_shape)
    if tensor.datatype != "UINT8" or tuple(tensor.shape) != shape or not 0 < num_images <= most:
        got = f"{tensor.datatype} {list(tensor.shape)}"
        expected = f"UINT8 {['N', *image_shape]}, N from 1 to {most}"
        raise InvalidRequest("inputs[0]", got, expected)
    elements = _elements(request, tensor)
    if len(elements) != np.prod(shape):
        got = f"{len(elements)} elements"
        raise InvalidRequest("inputs[0]", got, f"{np.prod(shape)} for its shape")
    packed = elements if isinstance(elements, bytes) else await asyncio.to_thread(_packed, elements)
    images: UInt8Array = np.frombuffer(packed, np.uint8)
    return images.reshape(shape)


def _elements(
    request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor
) -> bytes | Sequence[int]:
    if not request.raw_input_contents:
        return tensor.contents.uint_contents
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


def _response(request: oip.ModelInferRequest, logits: FloatArray) -> oip.ModelInferResponse:
    output = oip.ModelInferResponse.InferOutputTensor(
        name="logits", datatype="FP32", shape=logits.shape
    )
    response = oip.ModelInferResponse(
        model_name=MODEL_NAME, model_version=MODEL_VERSION, id=request.id
    )
    if request.raw_input_contents:
        response.raw_output_contents.append(logits.astype("<f4").tobytes())
    else:
        output.contents.fp32_contents.extend(logits.ravel().tolist())
    response.outputs.append(output)
    return response


def _timeout_ms(request: oip.ModelInferRequest) -> float:
    """Triton's parameter `timeout`, in microseconds there; 0 if there is none."""
    if "timeout" not in request.parameters:
        return 0.0
    return max(0, request.parameters["timeout"].int64_param) / 1e3


def _check_numbers(request: oip.ModelInferRequest) -> None:
    """Raise InvalidRequest where there are more parts than our model has a use for.

    Called before anything iterates over them: millions fit into a message, and all clients would
    wait.
    """
    if len(request.inputs) != 1:
        raise InvalidRequest("inputs", f"{len(request.inputs)} tensors", "the tensor images alone")
    if len(request.outputs) > 1:
        raise InvalidRequest("outputs", f"{len(request.outputs)} tensors", "logits, or none named")
    if len(request.inputs[0].shape) != 4:
        got = f"{len(request.inputs[0].shape)} dimensions"
        raise InvalidRequest("inputs[0]", got, "4, those of uint8 (N, S, S, 3)")
    if len(request.raw_input_contents) > 1:
        got = f"{len(request.raw_input_contents)} of them"
        raise InvalidRequest("raw_input_contents", got, "one per input, or typed contents")


def _check_parameters(request: oip.ModelInferRequest) -> None:
    """Raise InvalidRequest at a parameter that asks for another answer than ours."""
    asked: list[tuple[str, Iterable[str]]] = [
        ("parameters", request.parameters),
        ("inputs[0].parameters", request.inputs[0].parameters),
        *(("outputs[0].parameters", output.parameters) for output in request.outputs),
    ]
    for field, names in asked:
        for name in names:
            if name not in HARMLESS:
                raise InvalidRequest(f"{field}[{name!r}]", "not supported", way_out="leave it out")


def _is_ours(name: str, version: str) -> bool:
    return name == MODEL_NAME and version in ("", MODEL_VERSION)


def _check_model(field: str, name: str, version: str) -> None:
    if not _is_ours(name, version):
        got = f"{name!r} version {version!r}"
        raise UnknownModel(field, got, f"{MODEL_NAME!r}, version {MODEL_VERSION!r} or none")
