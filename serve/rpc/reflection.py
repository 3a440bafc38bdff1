"""Server reflection, v1 beside v1alpha: one protocol under two names.

grpcio-reflection knows v1alpha alone, whose messages are the same on the wire. Those of v1 are
generated, so that a client that asks for their descriptors gets them.
"""

from collections.abc import Iterable

import grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from irv2.reflection import reflection_pb2 as v1

SERVICES = (
    v1.DESCRIPTOR.services_by_name["ServerReflection"].full_name,
    reflection.SERVICE_NAME,
)


def add_reflection(services: Iterable[str], server: grpc.aio.Server) -> None:
    """Let the server describe these services and reflection itself."""
    servicer = reflection.aio.ReflectionServicer((*services, *SERVICES))
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        ServerReflectionRequest.FromString,
        ServerReflectionResponse.SerializeToString,
    )
    methods = {"ServerReflectionInfo": method}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(service, methods) for service in SERVICES]
    )
