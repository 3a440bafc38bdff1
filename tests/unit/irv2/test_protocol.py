"""Errors to status codes, and back."""

import base64
import urllib.parse

import pytest
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status

from irv2 import errors
from irv2.errors import InvalidRequest
from irv2.protocol import (
    CODE_BY_ERROR,
    DOMAIN,
    MAX_MESSAGE,
    error_from_call,
    image_error_from_status,
    retry_after_s,
    status_from_error,
)


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
