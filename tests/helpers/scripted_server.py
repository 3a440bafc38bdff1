"""A server that refuses as it is told, for what a real one does rarely or never on purpose."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_status import rpc_status

from irv2.errors import Irv2Error
from irv2.protocol import status_from_error
from irv2.v1 import classifier_pb2, classifier_pb2_grpc


class Scripted(classifier_pb2_grpc.ClassifierServicer):
    """Ends its first calls of Classify as `script` says, and answers the others.

    An entry is an error, refused as irv2-serve would, a status as a proxy may leave it, or a status
    code without any detail.
    """

    def __init__(
        self, *script: Irv2Error | grpc.Status | grpc.StatusCode, answers: bool = True
    ) -> None:
        self._script, self.answers = list(script), answers
        self.asked, self.leave = threading.Event(), threading.Event()
        self.called_at: list[float] = []

    def GetModel(self, request, context):  # noqa: N802 (gRPC's name)
        limits = classifier_pb2.Limits(max_message_bytes=2**20, max_images=1)
        return classifier_pb2.GetModelResponse(limits=limits)

    def Classify(self, request, context):  # noqa: N802
        self.called_at.append(time.monotonic())
        self.asked.set()
        if not self.answers:
            self.leave.wait()
        if self._script:
            refusal = self._script.pop(0)
            if isinstance(refusal, grpc.StatusCode):
                context.abort(refusal, "")
            if isinstance(refusal, grpc.Status):
                context.abort_with_status(refusal)
            context.abort_with_status(rpc_status.to_status(status_from_error(refusal)))
        results = [classifier_pb2.Result(scores=[classifier_pb2.Score()]) for _ in request.images]
        return classifier_pb2.ClassifyResponse(results=results, model_id="scripted")


@contextmanager
def served(servicer: Scripted):
    """Its address."""
    server = grpc.server(ThreadPoolExecutor(32))
    classifier_pb2_grpc.add_ClassifierServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        servicer.leave.set()
        server.stop(None).wait()
