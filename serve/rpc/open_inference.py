"""The Open Inference Protocol v2 beside our own, over gRPC, for existing clients.

Two models, `irv2` and `irv2-files` (tensor_models.py). Raw requests get raw answers, typed requests
typed ones. Of Triton's extensions there are those that its clients ask for: configuration,
statistics, repository index.
"""

from collections.abc import Callable

from irv2 import __version__
from irv2.errors import InvalidRequest
from irv2.inference import open_inference_pb2 as oip
from irv2.inference import open_inference_pb2_grpc
from irv2.serve.pipeline.model import Model
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.request_log import Context
from irv2.serve.rpc.tensor_models import (
    DEFAULT,
    MODELS,
    TIMEOUT,
    VERSION,
    Described,
    Tensor,
    infer,
    is_served,
    parameter,
    tensor_model,
)
from irv2.serve.rpc.triton import model_config, model_statistics

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("model_configuration", "model_repository", "statistics")


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
        """Whether we have this model, and it is ready."""
        ready = is_served(request.name, request.version) and self._is_ready()
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
        return await self._calls.unary(self._metadata(request), call, context)

    async def ModelInfer(  # noqa: N802
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse | None:
        """Answer a batch: `irv2` all of it or nothing, `irv2-files` each picture by itself."""
        call = self._calls.begin(
            context,
            "ModelInfer",
            request.id,
            num_images(request),
            timeout_ms=timeout_ms(request),
        )
        return await self._calls.unary(self._infer(request, call.deadline), call, context)

    async def ModelConfig(  # noqa: N802
        self, request: oip.ModelConfigRequest, context: Context
    ) -> oip.ModelConfigResponse | None:
        """Describe batching and tensors as Triton would."""
        call = self._calls.begin(context, "ModelConfig")
        return await self._calls.unary(self._config(request), call, context)

    async def ModelStatistics(  # noqa: N802
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse | None:
        """Count what the model has done since it took over."""
        call = self._calls.begin(context, "ModelStatistics")
        return await self._calls.unary(self._statistics(request), call, context)

    async def RepositoryIndex(  # noqa: N802
        self, request: oip.RepositoryIndexRequest, context: object
    ) -> oip.RepositoryIndexResponse:
        """List the models."""
        state = "READY" if self._is_ready() else "UNAVAILABLE"
        if request.ready and state != "READY":
            return oip.RepositoryIndexResponse()
        entry = oip.RepositoryIndexResponse.ModelIndex
        entries = [entry(name=name, version=VERSION, state=state) for name in MODELS]
        return oip.RepositoryIndexResponse(models=entries)

    async def _config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        asked = tensor_model("name", request.name, request.version)
        return oip.ModelConfigResponse(config=model_config(asked, self._current_model()))

    async def _statistics(self, request: oip.ModelStatisticsRequest) -> oip.ModelStatisticsResponse:
        """One engine is behind both names, and Classify: its statistics are of all requests.

        So all models, an empty name, have them once: clients add them up.
        """
        asked = tensor_model("name", request.name or DEFAULT, request.version)
        found = model_statistics(self._current_model().statistics, asked.name, VERSION)
        return oip.ModelStatisticsResponse(model_stats=[found])

    async def _metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        asked = tensor_model("name", request.name, request.version)
        model = self._current_model()
        given, outputs = asked.described(model)
        return oip.ModelMetadataResponse(
            name=asked.name,
            versions=[VERSION],
            platform=model.description.backend,
            inputs=[_metadata(given)],
            outputs=[_metadata(output) for output in outputs],
        )

    async def _infer(
        self, request: oip.ModelInferRequest, deadline: float
    ) -> oip.ModelInferResponse:
        return _response(request, await infer(request, self._current_model, deadline))


def num_images(request: oip.ModelInferRequest) -> int:
    """How many images the request says it has; nothing is checked yet."""
    return request.inputs[0].shape[0] if request.inputs and request.inputs[0].shape else 0


def timeout_ms(request: oip.ModelInferRequest) -> float:
    """Triton's parameter `timeout`, in microseconds there; 0 if there is none to be honoured."""
    try:
        return parameter(request, TIMEOUT) / 1e3
    except InvalidRequest:  # `infer` refuses it
        return 0.0


def _metadata(tensor: Described) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(**tensor._asdict())


def _response(request: oip.ModelInferRequest, tensors: list[Tensor]) -> oip.ModelInferResponse:
    response = oip.ModelInferResponse(
        model_name=request.model_name, model_version=VERSION, id=request.id
    )
    for tensor in tensors:
        output = response.outputs.add(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        if request.raw_input_contents:
            response.raw_output_contents.append(tensor.raw())
        elif isinstance(tensor.values, list):
            output.contents.bytes_contents.extend(tensor.values)
        else:
            output.contents.fp32_contents.extend(tensor.values.tolist())
    return response
