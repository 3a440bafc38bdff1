"""Between Python and the messages: images out, results and refusals in."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from irv2.errors import (
    Expired,
    ImageError,
    ImageReason,
    InvalidRequest,
    MessageTooLarge,
    NotServing,
    Overloaded,
    RequestError,
)
from irv2.results import Result, Score
from irv2.types import ImageSource, check_rgb
from irv2.v1 import classifier_pb2

IMAGES_PER_REQUEST = 32  # more gain nothing and make a retry dearer
# What protobuf adds: up to 30 bytes to each image (tags, lengths, height, width), 6 for top_k.
IMAGE_OVERHEAD_BYTES, REQUEST_OVERHEAD_BYTES = 32, 16
_CODES = grpc.StatusCode


def refusal_from(error: Any, name: str) -> RequestError:  # noqa: ANN401 (RpcError lacks its methods)
    """The one place where the server's status codes become our errors."""
    code, text = error.code(), error.details()
    if code is _CODES.UNAVAILABLE:
        return _no_answer(text, name)
    if code is _CODES.CANCELLED:  # not by us: gRPC sheds calls before the server looks at them
        return NotServing(name, "turned the call away unseen", way_out="ask with fewer at a time")
    if code is _CODES.DEADLINE_EXCEEDED:
        return Expired(name, "no answer in the time allowed")
    if code is _CODES.RESOURCE_EXHAUSTED:
        pause_s = retry_after_s(error)
        return MessageTooLarge(name, text) if pause_s is None else Overloaded(name, text, pause_s)
    if code is _CODES.UNAUTHENTICATED:
        got = f"takes no request without a valid token ({text})"
        return RequestError(name, got, way_out="pass one of its --token-file")
    if code is _CODES.INVALID_ARGUMENT:
        return InvalidRequest(name, text)
    if code is _CODES.UNIMPLEMENTED:
        return RequestError(name, "serves no irv2.v1.Classifier", "an irv2 server")
    return RequestError(name, f"{code.name} {text}")


def _no_answer(text: str, name: str) -> NotServing:
    """gRPC's `text` tells a story; the cause is at its end, or what OpenSSL says up to ": OK"."""
    _, is_openssl, reason = text.removesuffix(": OK").partition("OPENSSL_internal:")
    if not is_openssl:
        reason = text.rpartition(": ")[2]
    way_out = "start one with `irv2-serve BUNDLE --listen HOST:PORT`, or wait for it"
    if reason == "Socket closed":
        way_out += ", or, if it speaks TLS, pass --tls-ca (and --tls-cert where it asks for one)"
    return NotServing(name, f"no server answers ({reason})", way_out=way_out)


def split_into_requests(
    images: Iterable[ImageSource], limits: classifier_pb2.Limits
) -> Iterator[list[ImageSource]]:
    """Images in order, so many together as the server's limits allow."""
    most_images = images_per_request(limits)
    most_bytes = limits.max_message_bytes - REQUEST_OVERHEAD_BYTES
    request: list[ImageSource] = []
    num_bytes = 0
    for image in images:
        size = _num_bytes(image) + IMAGE_OVERHEAD_BYTES
        if request and (len(request) == most_images or num_bytes + size > most_bytes):
            yield request
            request, num_bytes = [], 0
        request.append(image)
        num_bytes += size
    if request:
        yield request


def images_per_request(limits: classifier_pb2.Limits) -> int:
    """How many images a request holds where their bytes allow it."""
    return min(limits.max_images, IMAGES_PER_REQUEST)


def bytes_per_image(limits: classifier_pb2.Limits) -> int:
    """How large an image may be that has a request to itself."""
    return max(0, limits.max_message_bytes - REQUEST_OVERHEAD_BYTES - IMAGE_OVERHEAD_BYTES)


def _num_bytes(image: ImageSource) -> int:
    if isinstance(image, bytes):
        return len(image)
    if isinstance(image, str | Path):
        return Path(image).stat().st_size if Path(image).is_file() else 0
    return image.nbytes if isinstance(image, np.ndarray) else 0  # wire_image refuses the rest


def wire_image(image: ImageSource, max_bytes: int) -> classifier_pb2.Image:
    """The message for one image: a file's bytes as they are, or pixels.

    Raises ImageError for what can't be read, or is larger than `max_bytes`.
    """
    if _num_bytes(image) > max_bytes:
        got, expected = f"{_num_bytes(image)} bytes", f"at most {max_bytes} in a message"
        raise ImageError(ImageReason.TOO_LARGE, got, expected, what=_name(image))
    if isinstance(image, bytes):
        return classifier_pb2.Image(encoded=image)
    if isinstance(image, str | Path):
        try:
            return classifier_pb2.Image(encoded=Path(image).read_bytes())
        except OSError as error:
            got = error.strerror or "can't be read"
            raise ImageError(ImageReason.UNREADABLE, got, "an image file", what=image) from error
    check_rgb(image)
    height, width, _ = image.shape
    pixels = classifier_pb2.Pixels(rgb=image.tobytes(), height=height, width=width)
    return classifier_pb2.Image(pixels=pixels)


def _name(image: ImageSource) -> str | Path:
    return image if isinstance(image, str | Path) else "image"


def result_from(result: classifier_pb2.Result, image: ImageSource, model_id: str) -> Result:
    """The scores of `image`, or the ImageError that the server answered, under the image's name."""
    if not result.HasField("error"):
        scores = tuple(Score(s.index, s.label, s.probability) for s in result.scores)
        return Result(scores, model_id=model_id)
    info = _detail(result.error, error_details_pb2.ErrorInfo())
    # A newer server may know reasons that this client does not: the text still says it.
    known = info is not None and info.reason in ImageReason.__members__
    reason = ImageReason(info.reason) if known else ImageReason.UNSUPPORTED
    text = result.error.message.removeprefix("image: ")
    return Result(error=ImageError(reason, text, what=_name(image)), model_id=model_id)


def retry_after_s(error: Any) -> float | None:  # noqa: ANN401 (RpcError lacks its methods)
    """Seconds after which the server wants to be asked again (RetryInfo); None: never."""
    retry = _detail(rpc_status.from_call(error), error_details_pb2.RetryInfo())
    return None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9


def _detail(status: status_pb2.Status | None, kind: Any) -> Any:  # noqa: ANN401 (a message)
    """Of a status's details the one like `kind`, or None."""
    for detail in status.details if status else ():
        if detail.Is(kind.DESCRIPTOR):
            detail.Unpack(kind)
            return kind
    return None
