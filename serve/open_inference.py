"""The Open Inference Protocol v2 beside our own: the model `irv2` for clients that exist.

Tensors as in a bundle: `images` UINT8 [N, S, S, 3] RGB, already resized and cropped, in; `logits`
FP32 [N, classes] out. A request in raw bytes is answered in raw bytes, a typed one typed.
"""

from collections.abc import Callable

import numpy as np

from irv2 import __version__
from irv2.errors import InvalidRequest
from irv2.inference import open_inference_pb2 as oip
from irv2.inference import open_inference_pb2_grpc
from irv2.types import FloatArray, UInt8Array
from serve.answering import Answering, Context
from serve.pipeline import Pipeline

SERVICE = "inference.GRPCInferenceService"
MODEL_NAME, MODEL_VERSION = "irv2", "1"


class OpenInference(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """The service; one per server."""

    def __init__(
        self, pipeline: Pipeline, answering: Answering, image_size: int,
        is_ready: Callable[[], bool],
    ) -> None:  # fmt: skip
        self._pipeline, self._answering, self._is_ready = pipeline, answering, is_ready
        self._image_shape = (image_size, image_size, 3)

    async def ServerLive(  # noqa: N802 (here and below: gRPC's names)
        self, request: oip.ServerLiveRequest, context: object
    ) -> oip.ServerLiveResponse:
        """It answers, so it lives."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(  # noqa: N802
        self, request: oip.ServerReadyRequest, context: object
    ) -> oip.ServerReadyResponse:
        """As health and /readyz."""
        return oip.ServerReadyResponse(ready=self._is_ready())

    async def ModelReady(  # noqa: N802
        self, request: oip.ModelReadyRequest, context: object
    ) -> oip.ModelReadyResponse:
        """Whether it is our model, and ready."""
        ready = _is_ours(request.name, request.version) and self._is_ready()
        return oip.ModelReadyResponse(ready=ready)

    async def ServerMetadata(  # noqa: N802
        self, request: oip.ServerMetadataRequest, context: object
    ) -> oip.ServerMetadataResponse:
        """Name and version."""
        return oip.ServerMetadataResponse(name="irv2", version=__version__)

    async def ModelMetadata(  # noqa: N802
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """Names, types and shapes of the tensors."""
        return await self._answering.unary(self._metadata(request), context)

    async def ModelInfer(  # noqa: N802
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse:
        """Logits of a batch; refused as a whole where anything about it is wrong."""
        deadline = self._answering.deadline(context)
        return await self._answering.unary(self._infer(request, deadline), context)

    async def _metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        _check_model("name", request.name, request.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        num_classes = len(self._pipeline.model.classes)
        return oip.ModelMetadataResponse(
            name=MODEL_NAME,
            versions=[MODEL_VERSION],
            platform=self._pipeline.model.backend,
            inputs=[tensor(name="images", datatype="UINT8", shape=[-1, *self._image_shape])],
            outputs=[tensor(name="logits", datatype="FP32", shape=[-1, num_classes])],
        )

    async def _infer(
        self, request: oip.ModelInferRequest, deadline: float
    ) -> oip.ModelInferResponse:  # fmt: skip
        _check_model("model_name", request.model_name, request.model_version)
        if any(output.name != "logits" for output in request.outputs):
            raise InvalidRequest("outputs", "an unknown tensor", "logits")
        images = self._images(request)
        logits = await self._pipeline.infer(images, deadline)
        return _response(request, logits)

    def _images(self, request: oip.ModelInferRequest) -> UInt8Array:
        """The input tensor, uint8 (N, S, S, 3). Raises InvalidRequest."""
        if [tensor.name for tensor in request.inputs] != ["images"]:
            got = ", ".join(tensor.name for tensor in request.inputs) or "none"
            raise InvalidRequest("inputs", got, "the tensor images alone")
        (tensor,) = request.inputs
        num_images = tensor.shape[0] if tensor.shape else 0
        shape = (num_images, *self._image_shape)
        most = self._pipeline.limits.max_images
        if tensor.datatype != "UINT8" or tuple(tensor.shape) != shape or not 0 < num_images <= most:
            got = f"{tensor.datatype} {list(tensor.shape)}"
            expected = f"UINT8 {['N', *self._image_shape]}, N from 1 to {most}"
            raise InvalidRequest("inputs[0]", got, expected)
        elements = _elements(request, tensor)
        if elements.size != np.prod(shape):
            got = f"{elements.size} elements"
            raise InvalidRequest("inputs[0]", got, f"{np.prod(shape)} for its shape")
        return elements.reshape(shape)


def _elements(
    request: oip.ModelInferRequest, tensor: oip.ModelInferRequest.InferInputTensor
) -> UInt8Array:  # fmt: skip
    if request.raw_input_contents:
        if len(request.raw_input_contents) != 1 or tensor.HasField("contents"):
            got = f"{len(request.raw_input_contents)} of them"
            raise InvalidRequest("raw_input_contents", got, "one per input, or typed contents")
        return np.frombuffer(request.raw_input_contents[0], np.uint8)
    typed = np.array(tensor.contents.uint_contents, np.uint32)
    if (typed > 255).any():
        raise InvalidRequest("inputs[0].contents", f"{typed.max()}", "0 to 255")
    return typed.astype(np.uint8)


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


def _is_ours(name: str, version: str) -> bool:
    return name == MODEL_NAME and version in ("", MODEL_VERSION)


def _check_model(field: str, name: str, version: str) -> None:
    if not _is_ours(name, version):
        got = f"{name!r} version {version!r}"
        raise InvalidRequest(field, got, f"{MODEL_NAME!r}, version {MODEL_VERSION!r} or none")
