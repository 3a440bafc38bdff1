"""Our errors as gRPC statuses, and back: what the server says and the client understands.

The two directions change together, and a round trip tests them (tests/unit/irv2/test_protocol.py).
"""

import re
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from irv2.errors import (
    Expired,
    ImageError,
    ImageReason,
    InvalidRequest,
    Irv2Error,
    MessageTooLarge,
    NotServing,
    Overloaded,
    RequestError,
    UnknownModel,
)
from irv2.system.address import UNIX

SERVICE = "irv2.v1.Classifier"
DOMAIN = "irv2"
# In characters. Statuses travel in headers, for which gRPC's clients accept 8 kB: a character takes
# up to 12 bytes in the message, and up to 6 in the details, which hold the message twice.
MAX_MESSAGE, MAX_FIELD = 300, 100
NOT_SERVING_RETRY_S = 0.5  # a server starts in seconds; if there are others, the next one answers

CODE_BY_ERROR: tuple[tuple[type[Irv2Error], int], ...] = (
    (ImageError, code_pb2.INVALID_ARGUMENT),
    (InvalidRequest, code_pb2.INVALID_ARGUMENT),
    (UnknownModel, code_pb2.NOT_FOUND),
    (Overloaded, code_pb2.RESOURCE_EXHAUSTED),
    (MessageTooLarge, code_pb2.RESOURCE_EXHAUSTED),
    (Expired, code_pb2.DEADLINE_EXCEEDED),
    (NotServing, code_pb2.UNAVAILABLE),
)
_CODES = grpc.StatusCode
_CODE_BY_NUMBER = {code.value[0]: code for code in _CODES if code is not _CODES.OK}


def status_from_error(error: Exception) -> status_pb2.Status:
    """Convert an error for the client; an unforeseen one becomes INTERNAL and reveals nothing."""
    codes = (code for kind, code in CODE_BY_ERROR if isinstance(error, kind))
    code = next(codes, code_pb2.INTERNAL)
    message = "internal error" if code == code_pb2.INTERNAL else _shortened(str(error))
    return status_pb2.Status(code=code, message=message, details=_details(error, code))


def error_from_call(error: Any, name: str) -> RequestError:  # noqa: ANN401 (RpcError lacks its methods)
    """Convert the grpc.RpcError that ended a call to the server `name` into a RequestError."""
    code, text = error.code(), error.details() or ""
    status = _status_of(error)
    if code is _CODES.CANCELLED and status and status.code in _CODE_BY_NUMBER:
        # A proxy (HAProxy) resets a call that the server refuses before the request is whole.
        code, text = _CODE_BY_NUMBER[status.code], status.message
    if code is _CODES.UNAVAILABLE:
        return _no_answer(text, name)
    if code is _CODES.CANCELLED:  # not by us: gRPC sheds calls before the server sees them
        return NotServing(name, "turned the call away unseen", way_out="ask with fewer at a time")
    if code is _CODES.DEADLINE_EXCEEDED:
        return Expired(name, "no answer in the time allowed")
    if code is _CODES.RESOURCE_EXHAUSTED:
        pause_s = retry_after_s(error)
        if pause_s is None:
            return MessageTooLarge(name, text)
        return Overloaded(name, text.partition("; retry in ")[0], pause_s)  # which says it again
    if code is _CODES.UNAUTHENTICATED:
        got = f"takes no request without a valid token ({text})"
        return RequestError(name, got, way_out="pass one of its --token-file")
    if code is _CODES.INVALID_ARGUMENT:
        return InvalidRequest(name, text)
    if code is _CODES.NOT_FOUND:
        return UnknownModel(name, text)
    if code is _CODES.UNIMPLEMENTED:
        return RequestError(name, f"does not serve {SERVICE}", "an irv2 server")
    if code is _CODES.UNKNOWN and text.endswith("status: 413"):  # gRPC's words for HTTP's status
        got = "a proxy before the server refuses requests of this size (413)"
        way_out = "raise its limit on bodies (nginx: client_max_body_size)"
        return MessageTooLarge(name, got, way_out=way_out)
    return RequestError(name, f"{code.name} {text}")


def image_error_from_status(status: status_pb2.Status, image: object) -> ImageError:
    """Convert the status of a single image in an answer, under the name `image`."""
    info = _detail(status, error_details_pb2.ErrorInfo())
    # A newer server may know reasons that this client does not: the text still tells.
    known = info is not None and info.reason in ImageReason.__members__
    reason = ImageReason(info.reason) if known else ImageReason.UNSUPPORTED
    return ImageError(reason, status.message.removeprefix("image: "), what=image)


def retry_after_s(error: Any) -> float | None:  # noqa: ANN401 (RpcError lacks its methods)
    """Return the seconds after which the server allows a retry (RetryInfo); None: never."""
    return retry_delay_s(_status_of(error))


def retry_delay_s(status: status_pb2.Status | None) -> float | None:
    """Return the seconds after which this status allows a retry; None: never."""
    retry = _detail(status, error_details_pb2.RetryInfo())
    return None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9


def is_connection_failure(error: Any) -> bool:  # noqa: ANN401 (RpcError lacks its methods)
    """Whether nobody was reached, so that TLS and the server had nothing to say."""
    return "Failed to connect to remote host" in (error.details() or "")


def is_token(text: str) -> bool:
    """Whether a header can carry `text` as a bearer token: one word of printable ASCII."""
    return re.fullmatch(r"[!-~]+", text) is not None


def _status_of(error: Any) -> status_pb2.Status | None:  # noqa: ANN401 (RpcError lacks its methods)
    """Return the status that the server put beside a call's code, if there is one.

    grpc_status.from_call refuses one that differs from the call's code, but a proxy may change it.
    """
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                return None  # what is left is the call's code
    return None


def _details(error: Exception, code: int) -> list[any_pb2.Any]:
    if isinstance(error, ImageError):
        return [_packed(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if isinstance(error, InvalidRequest):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_shortened(str(error.what), MAX_FIELD), description=_shortened(str(error))
        )
        return [_packed(error_details_pb2.BadRequest(field_violations=[violation]))]
    if isinstance(error, Overloaded | NotServing):
        wait_s = error.retry_after_s if isinstance(error, Overloaded) else NOT_SERVING_RETRY_S
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(wait_s * 1e9))
        return [_packed(error_details_pb2.RetryInfo(retry_delay=delay))]
    if code == code_pb2.INTERNAL:
        return [_packed(error_details_pb2.ErrorInfo(reason=ImageReason.INTERNAL, domain=DOMAIN))]
    return []


def _shortened(text: str, most: int = MAX_MESSAGE) -> str:
    """Shorten a text that quotes much of a request: if headers overflow, the code is lost."""
    return text if len(text) <= most else text[: most - 4] + " ..."


def _packed(detail: Message) -> any_pb2.Any:
    result = any_pb2.Any()
    result.Pack(detail)
    return result


def _no_answer(text: str, name: str) -> NotServing:
    """Extract the cause from gRPC's long `text`: its end, or what OpenSSL says before ": OK"."""
    _, is_openssl, reason = text.removesuffix(": OK").partition("OPENSSL_internal:")
    if not is_openssl:
        reason = text.rpartition(": ")[2].removesuffix("]")  # of a list that has begun before
    place = name if name.startswith(UNIX) else "HOST:PORT"
    way_out = f"start one with `irv2-serve BUNDLE --listen {place}`, or wait for it"
    if is_openssl or reason.startswith("Hostname Verification"):
        way_out = "compare --tls-ca, --tls-server-name and --tls-cert with the certificate there"
    elif reason == "Socket closed":
        way_out += ", or, if it speaks TLS, pass --tls-ca (and --tls-cert if it asks for one)"
    return NotServing(name, f"no server answers ({reason})", way_out=way_out)


def _detail(status: status_pb2.Status | None, kind: Any) -> Any:  # noqa: ANN401 (a message)
    """Return the first detail of a status with the type of `kind`, or None."""
    for detail in status.details if status else ():
        if detail.Is(kind.DESCRIPTOR):
            detail.Unpack(kind)
            return kind
    return None
