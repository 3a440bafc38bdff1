"""The six paths of the Open Inference Protocol over HTTP, with binary tensor data."""

from functools import partial

from google.rpc import status_pb2

from irv2 import __version__
from irv2.errors import NotServing, UnknownModel
from irv2.protocol import status_from_error
from irv2.serve.rest.request import Question, Reply
from irv2.serve.rest.tensors import LENGTH_HEADER, body_from_tensors, message_from_body
from irv2.serve.rpc.open_inference import num_images, timeout_ms
from irv2.serve.rpc.tensor_models import VERSION, infer, tensor_model

EXTENSIONS = ("binary_tensor_data",)
MODEL = r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?"


class Live(Reply):
    """GET /v2/health/live, open to everyone."""

    def get(self) -> None:
        """Say so: whoever answers is alive."""
        self.send({"live": True})


class Ready(Reply):
    """GET /v2/health/ready and of a model, open to everyone."""

    def get(self, name: str = "", version: str = "") -> None:
        """Say whether requests are wanted, of this model if one is named."""
        try:
            if name:
                tensor_model("name", name, version or "")
            if not self.desk.is_ready():
                raise NotServing("server", "is not ready")
        except (UnknownModel, NotServing) as error:
            self.send_refusal(status_from_error(error))
        else:
            self.send({"name": name, "ready": True} if name else {"ready": True})


class Server(Reply):
    """GET /v2: name, version and extensions."""

    def get(self) -> None:
        """Describe the server."""
        if self.is_let_in():
            self.send({"name": "irv2", "version": __version__, "extensions": EXTENSIONS})


class Metadata(Reply):
    """GET /v2/models/NAME: its tensors."""

    def get(self, name: str, version: str | None) -> None:
        """Describe the model."""
        if not self.is_let_in():
            return
        try:
            asked = tensor_model("name", name, version or "")
        except UnknownModel as error:
            self.send_refusal(status_from_error(error))
            return
        model = self.desk.current_model()
        given, outputs = asked.described(model)
        self.send(
            {
                "name": name,
                "versions": [VERSION],
                "platform": model.description.backend,
                "inputs": [given._asdict()],
                "outputs": [output._asdict() for output in outputs],
            }
        )


class Infer(Question):
    """POST /v2/models/NAME/infer."""

    method, may_wait = "http/ModelInfer", True

    async def ask(self, body: bytes) -> status_pb2.Status | None:
        """Answer with the tensors that were asked for."""
        name, version = self.path_kwargs["name"], self.path_kwargs["version"] or ""
        length = self.request.headers.get(LENGTH_HEADER)
        request = await self.read(partial(message_from_body, body, length, name, version))
        if isinstance(request, status_pb2.Status):
            return request
        del body
        call = self.begin(request.id, num_images(request), timeout_ms(request))
        work = infer(request, self.desk.current_model, call.deadline)
        tensors = await self.desk.calls.outcome(work, call)
        if isinstance(tensors, status_pb2.Status):
            return tensors
        answer, json_length = body_from_tensors(request, tensors)
        if json_length is None:
            self.send_bytes(answer, "application/json")
        else:
            self.set_header(LENGTH_HEADER, str(json_length))
            self.send_bytes(answer, "application/octet-stream")
        return None
