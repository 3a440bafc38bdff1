"""Errors to status codes, and back."""

import base64
import socket
import threading
import urllib.parse
from collections import namedtuple

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from scripted_server import Scripted, served

from irv2 import errors
from irv2.errors import InvalidRequest
from irv2.protocol import (
    CODE_BY_ERROR,
    DOMAIN,
    MAX_MESSAGE,
    error_from_call,
    image_error_from_status,
    is_connection_failure,
    retry_after_s,
    status_from_error,
)
from irv2.v1.classifier_pb2 import ClassifyRequest
from irv2.v1.classifier_pb2_grpc import ClassifierStub


def subclasses(kind: type) -> list[type]:
    return [each for child in kind.__subclasses__() for each in (child, *subclasses(child))]


def test_every_kind_of_refusal_has_a_code():
    kinds = subclasses(errors.RequestError)
    assert len(kinds) >= 5
    for kind in [*kinds, errors.ImageError]:
        assert any(issubclass(kind, known) for known, _ in CODE_BY_ERROR), kind


@pytest.mark.parametrize("reason", list(errors.ImageReason))
def test_an_image_error_says_its_reason_in_an_error_info(reason):
    status = status_from_error(errors.ImageError(reason, "bad", "good"))
    info = error_details_pb2.ErrorInfo()
    assert len(status.details) == 1
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason) == ("irv2", reason.value)
    assert status.message == "image: bad; expected good"


def test_overload_says_when_to_come_back():
    retry = error_details_pb2.RetryInfo()
    status = status_from_error(errors.Overloaded("server", "busy", 1.5))
    assert status.code == code_pb2.RESOURCE_EXHAUSTED
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_a_message_too_large_does_not_ask_to_be_retried():
    status = status_from_error(errors.MessageTooLarge("message", "65 MiB", "64 MiB"))
    assert (status.code, len(status.details)) == (code_pb2.RESOURCE_EXHAUSTED, 0)


def test_a_bad_request_names_its_field():
    details = error_details_pb2.BadRequest()
    status = status_from_error(errors.InvalidRequest("images", "0 of them", "1 to 64"))
    assert status.details[0].Unpack(details)
    assert details.field_violations[0].field == "images"


@pytest.mark.parametrize(
    "error", [ValueError("/secret/path"), errors.EngineError("/secret/path", "broke")]
)
def test_the_unforeseen_says_nothing_about_our_insides(error):
    status = status_from_error(error)
    assert status.code == code_pb2.INTERNAL
    assert "secret" not in str(status)


def test_a_long_message_is_cut_so_that_it_fits_into_headers():
    status = status_from_error(InvalidRequest("model_name", "\U0001f600" * 20_000, "irv2"))
    assert status.code == code_pb2.INVALID_ARGUMENT
    assert len(status.message) <= MAX_MESSAGE
    assert status.message.endswith(" ...")
    assert 12 * len(status.message) + 4 / 3 * status.ByteSize() < 16_384


def test_a_status_fits_into_the_headers_that_clients_take():
    """8 kB in all; the worst characters are percent-encoded to 12 bytes."""
    name = "\N{SNAKE}" * 10_000
    status = status_from_error(InvalidRequest(name, name, name))
    message = urllib.parse.quote(status.message)
    details = base64.b64encode(status.SerializeToString())
    assert len(message) + len(details) < 7500


class Ended:
    """A call as its client sees it that ended with this status."""

    def __init__(self, status):
        self.status = rpc_status.to_status(status)

    def code(self):
        return self.status.code

    def details(self):
        return self.status.details

    def trailing_metadata(self):
        return self.status.trailing_metadata


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("images", "0 of them", "1 to 64"),
        errors.Overloaded("server", "is full", 1.5),
        errors.MessageTooLarge("message", "65 MiB", "64 MiB"),
        errors.UnknownModel("name", "'resnet' version ''", "'irv2', version '1' or none"),
        errors.Expired("deadline", "passed in the queue"),
        errors.NotServing("server", "is starting"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_refusal_is_the_same_error_at_the_client(error):
    call = Ended(status_from_error(error))
    received = error_from_call(call, "host:8500")
    assert type(received) is type(error)
    assert str(received).startswith("host:8500: ")
    if isinstance(error, errors.Overloaded):
        assert received.retry_after_s == error.retry_after_s
    elif not isinstance(error, errors.NotServing):  # which is asked again unless told otherwise
        assert retry_after_s(call) is None


def test_every_kind_of_refusal_makes_the_round_trip():
    kinds = set(subclasses(errors.RequestError))
    known = {kind for kind, _ in CODE_BY_ERROR if issubclass(kind, errors.RequestError)}
    assert kinds == known


@pytest.mark.parametrize("reason", list(errors.ImageReason))
def test_the_error_of_an_image_is_the_same_at_the_client(reason):
    status = status_from_error(errors.ImageError(reason, "bad", "good"))
    received = image_error_from_status(status, "a.jpg")
    assert (received.reason, str(received)) == (reason, "a.jpg: bad; expected good")


def test_a_reason_that_the_client_does_not_know_keeps_its_text():
    status = status_from_error(errors.ImageError(errors.ImageReason.EMPTY, "bad"))
    info = error_details_pb2.ErrorInfo(reason="OF_A_NEWER_SERVER", domain=DOMAIN)
    status.details[0].Pack(info)
    received = image_error_from_status(status, "a.jpg")
    assert (received.reason, received.got) == (errors.ImageReason.UNSUPPORTED, "bad")


class End(namedtuple("End", ("code", "details", "trailing_metadata")), grpc.Status):
    """The end of a call, whatever its parts say."""


def end_of_a_call(address: str) -> grpc.RpcError:
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
        ClassifierStub(channel).Classify(ClassifyRequest(), timeout=20)
    return raised.value


def ended(code: grpc.StatusCode, details: bytes) -> grpc.RpcError:
    """A call that ended with `code`, but with these details."""
    end = End(code, "stream removed", (("grpc-status-details-bin", details),))
    with served(Scripted(end)) as address:
        return end_of_a_call(address)


def test_a_refusal_that_a_proxy_cut_off_is_the_servers_refusal():
    """As behind HAProxy: the server answered before it had the whole request."""
    status = status_from_error(errors.Overloaded("server", "is full", 0.5))
    call = ended(grpc.StatusCode.CANCELLED, status.SerializeToString())
    received = error_from_call(call, "host:8500")
    assert isinstance(received, errors.Overloaded)
    assert (received.retry_after_s, retry_after_s(call)) == (0.5, 0.5)
    assert str(received) == "host:8500: server: is full; retry in 0.5 s"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.UNAVAILABLE, errors.NotServing),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.Expired),
        (grpc.StatusCode.UNKNOWN, errors.RequestError),
    ],
)
def test_a_call_whose_details_are_of_another_status_has_the_code_it_ended_with(code, expected):
    status = status_from_error(errors.Overloaded("server", "is full", 0.5))
    call = ended(code, status.SerializeToString())
    assert type(error_from_call(call, "host:8500")) is expected
    assert retry_after_s(call) == 0.5


@pytest.mark.parametrize("details", [b"", b"junk", status_pb2.Status(code=99).SerializeToString()])
def test_a_call_whose_details_can_not_be_read_has_the_code_it_ended_with(details):
    call = ended(grpc.StatusCode.CANCELLED, details)
    assert type(error_from_call(call, "host:8500")) is errors.NotServing
    assert retry_after_s(call) is None


def refuse_the_size(listener: socket.socket) -> None:
    """Answer one call like an HTTP/2 proxy whose limit on bodies it exceeds."""

    def frame(kind: int, flags: int, stream: bytes, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream + payload

    connection, _ = listener.accept()
    with connection, connection.makefile("rb") as received:
        received.read(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        connection.sendall(frame(4, 0, bytes(4)))  # SETTINGS
        while header := received.read(9):
            received.read(int.from_bytes(header[:3], "big"))
            if header[3] == 1:  # HEADERS: answered with END_STREAM, END_HEADERS and :status 413
                connection.sendall(frame(1, 5, header[5:9], b"\x08\x03413"))


def test_a_proxy_that_refuses_the_size_of_a_request_is_told_apart():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = threading.Thread(target=refuse_the_size, args=(listener,))
        proxy.start()
        call = end_of_a_call(f"127.0.0.1:{listener.getsockname()[1]}")
        proxy.join()
    received = error_from_call(call, "host:8500")
    assert type(received) is errors.MessageTooLarge
    assert str(received) == (
        "host:8500: a proxy before the server refuses requests of this size (413); "
        "raise its limit on bodies (nginx: client_max_body_size)"
    )
    assert retry_after_s(call) is None


class Unreachable:
    """The end of a call that reached nobody, with gRPC's text."""

    def __init__(self, text: str) -> None:
        self.text = text

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return self.text

    def trailing_metadata(self):
        return ()


ALL = "connections to all backends failing; last error: UNKNOWN: ipv4:127.0.0.1:1: "
REFUSED = f"{ALL}Failed to connect to remote host: Connection refused"
UNKNOWN = (
    "errors resolving h:1: [field:hostname lookup error:address lookup failed for h:1: Not found]"
)
UNTRUSTED = (
    f"{ALL}Tls handshake failed (TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:"
    "OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate: OK"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (REFUSED, "h:1: no server answers (Connection refused); start one with "),
        (UNKNOWN, "h:1: no server answers (Not found); start one with "),
        (
            UNTRUSTED,
            "h:1: no server answers (CERTIFICATE_VERIFY_FAILED: unable to get local issuer "
            "certificate); compare --tls-ca, ",
        ),
    ],
)
def test_the_reason_of_a_failed_connection_is_taken_out_of_grpc_s_text(text, message):
    assert str(error_from_call(Unreachable(text), "h:1")).startswith(message)


def test_only_where_nobody_was_reached_is_it_a_connection_that_failed():
    assert is_connection_failure(Unreachable(REFUSED))
    assert not is_connection_failure(Unreachable(UNTRUSTED))
    assert not is_connection_failure(Unreachable("Socket closed"))
