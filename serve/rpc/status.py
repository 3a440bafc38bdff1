"""The one place where our errors become status codes and google.rpc details."""

from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
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
)

DOMAIN = "irv2"
# Characters. Statuses travel in headers, of which gRPC's clients take 8 kB: there a character takes
# up to 12 bytes in the message, and up to 6 in the details, which hold the message twice.
MAX_MESSAGE, MAX_FIELD = 300, 100
NOT_SERVING_RETRY_S = 0.5  # a server starts in seconds; behind others, the next one answers

CODE_BY_ERROR: tuple[tuple[type[Irv2Error], int], ...] = (
    (ImageError, code_pb2.INVALID_ARGUMENT),
    (InvalidRequest, code_pb2.INVALID_ARGUMENT),
    (Overloaded, code_pb2.RESOURCE_EXHAUSTED),
    (MessageTooLarge, code_pb2.RESOURCE_EXHAUSTED),
    (Expired, code_pb2.DEADLINE_EXCEEDED),
    (NotServing, code_pb2.UNAVAILABLE),
)


def status_from_error(error: Exception) -> status_pb2.Status:
    """Code, message and details for a client; anything unforeseen is INTERNAL and says no more."""
    codes = (code for kind, code in CODE_BY_ERROR if isinstance(error, kind))
    code = next(codes, code_pb2.INTERNAL)
    message = "internal error" if code == code_pb2.INTERNAL else _shortened(str(error))
    return status_pb2.Status(code=code, message=message, details=_details(error, code))


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
    """Of what a client sent, a text may quote a lot; longer ones would lose their own code."""
    return text if len(text) <= most else text[: most - 4] + " ..."


def _packed(detail: Message) -> any_pb2.Any:
    result = any_pb2.Any()
    result.Pack(detail)
    return result
