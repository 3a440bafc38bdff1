"""Errors to status codes."""

import base64
import urllib.parse

import pytest
from google.rpc import code_pb2, error_details_pb2

from irv2 import errors
from irv2.errors import InvalidRequest
from irv2.serve.rpc.status import CODE_BY_ERROR, MAX_MESSAGE, status_from_error


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
