"""Answers and refusals under /v1: the messages of gRPC in protobuf's own JSON.

A refusal has the form that Google's APIs gave it (https://google.aip.dev/193).
"""

from typing import Any

from google.protobuf import message as protobuf
from google.protobuf.json_format import MessageToDict
from google.rpc import code_pb2, status_pb2

from irv2.serve.rest.request import Reply, http_status


class Message(Reply):
    """A request answered with a message."""

    def refusal(self, status: status_pb2.Status) -> dict[str, Any]:
        """The status, and its code in the words of HTTP and of gRPC."""
        error = json_from_message(status)
        error |= {"code": http_status(status), "status": code_pb2.Code.Name(status.code)}
        return {"error": error}


def json_from_message(message: protobuf.Message) -> dict[str, Any]:
    """The object that stands for a message, with all of its fields."""
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found
