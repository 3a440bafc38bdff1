"""The client: the same answers as `Bundle.classify`, from a server.

    with Client("host:8500") as client:
        results = client.classify(["a.jpg", image_bytes, array_hwc_uint8], top_k=5)

Requests stay under the server's limits. A server that is overloaded or restarting is asked again
when it says so, within the time allowed.
"""

import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
from google.protobuf.message import Message
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
    UsageError,
)
from irv2.results import DEFAULT_TOP_K, Result, Score
from irv2.types import UInt8Array
from irv2.v1 import classifier_pb2, classifier_pb2_grpc

ImageSource = str | Path | bytes | UInt8Array

DEFAULT_TIMEOUT_S = 60.0  # of one request, where the caller names none
IMAGES_PER_REQUEST = 32  # more gain nothing and make a retry dearer
REQUESTS_AT_A_TIME = 2  # one is decoded by the server while another is on its way
# Where nobody says when to come back: long enough for a server to start on a CPU.
UNAVAILABLE_PAUSES_S = (0.1, 0.3, 0.6, 1.0, 1.0, 1.0)
MIN_PAUSE_S = 0.01
_MESSAGE_OVERHEAD_BYTES = 64 * 1024  # framing of the images, id, top_k
_CODES = grpc.StatusCode


class Client:
    """A connection to one server, or to several that take turns. May be shared by threads."""

    def __init__(self, addresses: str | Sequence[str]) -> None:
        """`addresses`: HOST:PORT, or a list of them. Connects when first used."""
        names = [addresses] if isinstance(addresses, str) else list(addresses)
        self._name = ", ".join(names)
        self._channel = grpc.insecure_channel(
            _target(names),
            options=[
                ("grpc.lb_policy_name", "round_robin"),
                ("grpc.max_receive_message_length", -1),
                ("grpc.enable_retries", 0),  # ours know RetryInfo
                ("grpc.enable_http_proxy", 0),  # an address is where the server is
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
            ],
        )
        self._stub = classifier_pb2_grpc.ClassifierStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def model(self) -> classifier_pb2.Model:
        """The served model: id, classes, precision, backend and the gate's evidence."""
        return self._description.model

    def classify(
        self, images: Iterable[ImageSource], top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
    ) -> list[Result]:  # fmt: skip
        """Classify paths, encoded bytes or uint8 RGB (H, W, 3) arrays; one Result per image.

        An image that can't be read or that the server refuses gives a Result with an error.
        `timeout_s` is for all images together; None allows a minute per request. Raises Expired,
        Overloaded, NotServing or another RequestError where there is no answer.
        """
        return list(self.iter_classify(images, top_k, timeout_s))

    def iter_classify(
        self, images: Iterable[ImageSource], top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
    ) -> Iterator[Result]:  # fmt: skip
        """The same, result by result, for many images; files are read as they are needed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s

        def send(request: list[ImageSource]) -> list[Result]:
            return self._classify_request(request, top_k, deadline)

        requests = list(_requests(list(images), self._description.limits))
        if len(requests) < 2:  # the usual case needs no threads
            yield from chain.from_iterable(map(send, requests))
            return
        pool = ThreadPoolExecutor(REQUESTS_AT_A_TIME, thread_name_prefix="irv2-client")
        try:
            yield from chain.from_iterable(pool.map(send, requests))
        finally:
            pool.shutdown(cancel_futures=True)

    @cached_property
    def _description(self) -> classifier_pb2.GetModelResponse:
        request = classifier_pb2.GetModelRequest()
        response = self._call(self._stub.GetModel, request, None)
        assert isinstance(response, classifier_pb2.GetModelResponse)
        return response

    def _classify_request(
        self, images: list[ImageSource], top_k: int, deadline: float | None
    ) -> list[Result]:  # fmt: skip
        encoded: list[classifier_pb2.Image] = []
        results: dict[int, Result] = {}  # of those that can't be sent
        most = self._description.limits.max_message_bytes - _MESSAGE_OVERHEAD_BYTES
        for i, image in enumerate(images):
            try:
                encoded.append(_wire_image(image, most))
            except ImageError as error:
                results[i] = Result(error=error)
        if encoded:
            request = classifier_pb2.ClassifyRequest(images=encoded, top_k=top_k)
            response = self._call(self._stub.Classify, request, deadline)
            sent = [i for i in range(len(images)) if i not in results]
            for i, result in zip(sent, response.results, strict=True):
                results[i] = _result(result, images[i])
        return [results[i] for i in range(len(images))]

    def _call(self, method: Any, request: Message, deadline: float | None) -> Any:  # noqa: ANN401
        """One unary call, repeated while the server says that it helps and time is left."""
        deadline = deadline or time.monotonic() + DEFAULT_TIMEOUT_S
        pauses_s = iter(UNAVAILABLE_PAUSES_S)
        while True:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Expired(self._name, "no answer in the time allowed")
            try:
                return method(request, timeout=left_s)
            except grpc.RpcError as error:
                refusal, pause_s = self._refusal(error), _retry_after_s(error)
            if pause_s is None and isinstance(refusal, NotServing):
                pause_s = next(pauses_s, None)
            if pause_s is None or time.monotonic() + pause_s >= deadline:
                raise refusal
            time.sleep(max(pause_s, MIN_PAUSE_S))

    def _refusal(self, error: Any) -> RequestError:  # noqa: ANN401 (RpcError lacks its methods)
        """The one place where the server's status codes become our errors."""
        code, text = error.code(), error.details()
        if code is _CODES.UNAVAILABLE:
            way_out = "start one with `irv2-serve BUNDLE --listen HOST:PORT`, or wait for it"
            reason = text.rpartition(": ")[2]  # gRPC tells the whole story, the cause is last
            return NotServing(self._name, f"no server answers ({reason})", way_out=way_out)
        if code is _CODES.DEADLINE_EXCEEDED:
            return Expired(self._name, "no answer in the time allowed")
        if code is _CODES.RESOURCE_EXHAUSTED:
            retry_after_s = _retry_after_s(error)
            if retry_after_s is None:
                return MessageTooLarge(self._name, text)
            return Overloaded(self._name, text, retry_after_s)
        if code is _CODES.INVALID_ARGUMENT:
            return InvalidRequest(self._name, text)
        if code is _CODES.UNIMPLEMENTED:
            return RequestError(self._name, "serves no irv2.v1.Classifier", "an irv2 server")
        return RequestError(self._name, f"{code.name} {text}")


def _target(names: list[str]) -> str:
    """gRPC's name for the addresses; a list has to be resolved here, it takes no host names."""
    if not names or not all(name.rpartition(":")[2].isdecimal() for name in names):
        raise UsageError("address", repr(", ".join(names)), "HOST:PORT")
    if len(names) == 1:
        return names[0]
    return "ipv4:" + ",".join(chain.from_iterable(map(_resolve, names)))


def _resolve(name: str) -> list[str]:
    host, _, port = name.rpartition(":")
    try:
        found = socket.getaddrinfo(host, int(port), socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise NotServing(name, f"unknown host ({error.strerror})") from error
    return [f"{address[4][0]}:{port}" for address in found]


def _requests(
    images: list[ImageSource], limits: classifier_pb2.Limits
) -> Iterator[list[ImageSource]]:  # fmt: skip
    """Images in order, so many together as the server's limits allow."""
    most_images = min(limits.max_images, IMAGES_PER_REQUEST)
    most_bytes = limits.max_message_bytes - _MESSAGE_OVERHEAD_BYTES
    request: list[ImageSource] = []
    num_bytes = 0
    for image in images:
        size = _num_bytes(image)
        if request and (len(request) == most_images or num_bytes + size > most_bytes):
            yield request
            request, num_bytes = [], 0
        request.append(image)
        num_bytes += size
    if request:
        yield request


def _num_bytes(image: ImageSource) -> int:
    if isinstance(image, bytes):
        return len(image)
    if isinstance(image, str | Path):
        return Path(image).stat().st_size if Path(image).is_file() else 0
    return image.nbytes


def _wire_image(image: ImageSource, max_bytes: int) -> classifier_pb2.Image:
    """Raises ImageError for what can't be read or sent."""
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
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}"
        raise ImageError(ImageReason.BAD_PIXELS, found, "uint8 RGB (H, W, 3)")
    height, width, _ = image.shape
    pixels = classifier_pb2.Pixels(rgb=image.tobytes(), height=height, width=width)
    return classifier_pb2.Image(pixels=pixels)


def _name(image: ImageSource) -> str | Path:
    return image if isinstance(image, str | Path) else "image"


def _result(result: classifier_pb2.Result, image: ImageSource) -> Result:
    if not result.HasField("error"):
        return Result(tuple(Score(s.index, s.label, s.probability) for s in result.scores))
    info = _detail(result.error, error_details_pb2.ErrorInfo())
    # A newer server may know reasons that this client does not: the text still says it.
    known = info is not None and info.reason in ImageReason.__members__
    reason = ImageReason(info.reason) if known else ImageReason.UNSUPPORTED
    text = result.error.message.removeprefix("image: ")
    return Result(error=ImageError(reason, text, what=_name(image)))


def _retry_after_s(error: Any) -> float | None:  # noqa: ANN401 (RpcError lacks its methods)
    retry = _detail(rpc_status.from_call(error), error_details_pb2.RetryInfo())
    return None if retry is None else retry.retry_delay.ToNanoseconds() / 1e9


def _detail(status: status_pb2.Status | None, kind: Any) -> Any:  # noqa: ANN401 (a message)
    """Of a status's details the one like `kind`, or None."""
    for detail in status.details if status else ():
        if detail.Is(kind.DESCRIPTOR):
            detail.Unpack(kind)
            return kind
    return None
