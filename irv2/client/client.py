"""The client: the same answers as `Bundle.classify`, from a server.

    with Client("host:8500") as client:
        results = client.classify(["a.jpg", image_bytes, array_hwc_uint8], top_k=5)

Requests stay under the server's limits. If a server is overloaded or restarting, the client retries
when the server says to, within the time allowed.
"""

import math
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, NoReturn, Self

import grpc
from google.protobuf.message import Message

from irv2.client.channel import Tls, open_channel, open_channels_one_by_one
from irv2.client.in_flight import InFlight
from irv2.client.wire import (
    bytes_per_image,
    images_per_request,
    result_from,
    split_into_requests,
    wire_image,
)
from irv2.errors import (
    Expired,
    ImageError,
    InvalidRequest,
    MessageTooLarge,
    NotServing,
    RequestError,
    UsageError,
)
from irv2.protocol import error_from_call, is_connection_failure, is_token, retry_after_s
from irv2.results import DEFAULT_TOP_K, Result, check_top_k
from irv2.types import ImageSource, as_images
from irv2.v1 import classifier_pb2, classifier_pb2_grpc

__all__ = ["Client", "ImageSource", "Tls"]

DEFAULT_TIMEOUT_S = 60.0  # for one request, if the caller gives none
LONGEST_S = 1e9  # gRPC's clock ends in 2262: a later deadline would count as expired
# Kept in flight per server: two requests, so that one is decoded while the other travels, and
# images for three batches: one runs, one waits and one is decoded.
REQUESTS_PER_SERVER, BATCHES_PER_SERVER = 2, 3
MAX_IMAGES_IN_FLIGHT = 224  # of 256 that a server admits by default: leaves room for other clients
# Used if the server gives no time: together long enough for a server to start on a CPU.
UNAVAILABLE_PAUSES_S = (0.1, 0.3, 0.6, 1.0, 1.0, 1.0)
MIN_PAUSE_S = 0.01
PROBE_S = 0.5  # to learn why one address of a host fails


class Client:
    """A connection to one server, or to several in turn. Threads may share it."""

    def __init__(
        self, addresses: str | Sequence[str], *, tls: Tls | None = None, token: str | None = None
    ) -> None:
        """Prepare to connect to `addresses` on first use: HOST:PORT, a list of them, or unix:PATH.

        `tls` None means no encryption. `token` is sent with every request. Raises UsageError
        if an address, a certificate or the token can't be used.
        """
        if token and not is_token(token):
            got = "a token that no header can carry"
            raise UsageError("token", got, "one word of printable ASCII")
        names = [addresses] if isinstance(addresses, str) else list(addresses)
        self.name = ", ".join(names)  # for messages
        self._num_servers = len(names)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._tls = tls
        self._channel = open_channel(names, tls)
        self._stub = classifier_pb2_grpc.ClassifierStub(self._channel)
        self._known: _Known | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        got = "a client can't be sent to another process"
        raise UsageError(self.name, got, way_out="make a Client in each process")

    def close(self) -> None:
        """Close the connection; requests in other threads end with a RequestError."""
        self._closed.set()
        self._channel.close()

    def model(self) -> classifier_pb2.Model:
        """Return the model served now: id, classes, precision, backend and the gate's evidence.

        A server may switch models at any time: each Result names the model that produced it.
        Raises a RequestError if there is no answer.
        """
        return self._describe(None).model

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
    ) -> list[Result]:
        """Classify paths, encoded bytes or uint8 RGB (H, W, 3) arrays; one Result per image.

        A lone image gives a list of one Result. An image that can't be read or that the server
        refuses gives a Result with an error. `timeout_s` is for all images together; None allows
        a minute per request. Raises Expired, Overloaded, NotServing or another RequestError if
        there is no answer, and UsageError for a `top_k` or `timeout_s` that can't be used.
        """
        return list(self.iter_classify(images, top_k, timeout_s))

    def iter_classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
    ) -> Iterator[Result]:
        """Classify like `classify`, but lazily: images are read and results yielded one by one.

        Enough requests are kept in flight that no server waits for the next one. Images that come
        slowly, as from a camera, are answered as they come; a generator is read in a thread of its
        own, and what it raises is raised here after the results of the images before.
        """
        check_top_k(top_k)
        if timeout_s is not None and math.isnan(timeout_s):
            raise UsageError("timeout_s", "nan", "seconds")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        return self._results(as_images(images), top_k, deadline)

    def _results(
        self, images: Iterable[ImageSource], top_k: int, deadline: float | None
    ) -> Iterator[Result]:
        def send(request: list[ImageSource], limits: classifier_pb2.Limits) -> list[Result]:
            try:
                return self._classify_request(request, top_k, deadline)
            except (InvalidRequest, MessageTooLarge):
                self._known = None
                found = self._server(deadline).limits
                if found == limits:
                    raise
            parts = split_into_requests(request, found)  # the server restarted with other limits
            return list(chain.from_iterable(send(part, found) for part in parts))

        known = self._server(deadline)
        send_first = partial(send, limits=known.limits)
        if isinstance(
            images, Sequence
        ):  # all there: the usual case of one request needs no threads
            requests = list(islice(split_into_requests(images, known.limits), 2))
            if len(requests) < 2:
                yield from chain.from_iterable(map(send_first, requests))
                return
        window = known.window * self._num_servers
        yield from InFlight(images, known.limits, send_first, window).results()

    def _server(self, deadline: float | None) -> "_Known":
        """Ask once for the server's limits, and again after a request has broken one.

        The window is a guess and may become outdated.
        """
        known = self._known  # read once: other threads may reset it
        if known is None:
            description = self._describe(deadline)
            known = self._known = _Known(description.limits, _window(description))
        return known

    def _describe(self, deadline: float | None) -> classifier_pb2.GetModelResponse:
        response: classifier_pb2.GetModelResponse = self._call(
            self._stub.GetModel, classifier_pb2.GetModelRequest(), deadline
        )
        return response

    def _classify_request(
        self, images: list[ImageSource], top_k: int, deadline: float | None
    ) -> list[Result]:
        encoded: list[classifier_pb2.Image] = []
        results: dict[int, Result] = {}  # for images that can't be sent
        most = bytes_per_image(self._server(deadline).limits)
        for i, image in enumerate(images):
            try:
                encoded.append(wire_image(image, most))
            except ImageError as error:
                results[i] = Result(error=error)
        if encoded:
            request = classifier_pb2.ClassifyRequest(images=encoded, top_k=top_k)
            response = self._call(self._stub.Classify, request, deadline)
            sent = [i for i in range(len(images)) if i not in results]
            for i, result in zip(sent, response.results, strict=True):
                results[i] = result_from(result, images[i], response.model_id)
        return [results[i] for i in range(len(images))]

    def _call(self, method: Any, request: Message, deadline: float | None) -> Any:  # noqa: ANN401
        """Make a unary call, repeated while the server says to retry and time is left."""
        deadline = deadline or time.monotonic() + DEFAULT_TIMEOUT_S
        pauses_s = iter(UNAVAILABLE_PAUSES_S)
        while not self._closed.is_set():
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise Expired(self.name, "no answer in the time allowed")
            try:
                timeout_s = min(left_s, LONGEST_S)
                return method(request, timeout=timeout_s, metadata=self._metadata)
            except grpc.RpcError as error:
                failure, refusal = error, error_from_call(error, self.name)
                pause_s = retry_after_s(error)
            except ValueError:  # what gRPC raises for a channel that has just been closed
                if self._closed.is_set():
                    break
                raise
            if pause_s is None and isinstance(refusal, NotServing):
                pause_s = next(pauses_s, None)
            if pause_s is None or time.monotonic() + pause_s >= deadline:
                raise self._why_not(failure) or refusal
            self._closed.wait(_with_jitter(max(pause_s, MIN_PAUSE_S), deadline))
        raise RequestError(self.name, "the client was closed", way_out="make another one")

    def _why_not(self, failure: grpc.RpcError) -> RequestError | None:
        """Return why the address of the host fails at which somebody listens, if there is one.

        Where a host has several, gRPC tells the failure that it saw last. That may be "Connection
        refused" by ::1, while a server at 127.0.0.1 shows a certificate that is not trusted.
        """
        if not is_connection_failure(failure) or self._num_servers > 1:
            return None
        for channel in open_channels_one_by_one(self.name, self._tls):
            stub = classifier_pb2_grpc.ClassifierStub(channel)
            try:
                stub.GetModel(
                    classifier_pb2.GetModelRequest(), timeout=PROBE_S, metadata=self._metadata
                )
            except grpc.RpcError as error:
                found = error_from_call(error, self.name)
                if not is_connection_failure(error) and isinstance(found, NotServing):
                    return found
        return None


class _Known(NamedTuple):
    """A server's limits, and how many requests to keep in flight."""

    limits: classifier_pb2.Limits
    window: int


def _window(description: classifier_pb2.GetModelResponse) -> int:
    """Return how many requests fill the server's batches without overfilling its queue."""
    images = min(BATCHES_PER_SERVER * description.model.max_batch, MAX_IMAGES_IN_FLIGHT)
    return max(REQUESTS_PER_SERVER, math.ceil(images / images_per_request(description.limits)))


def _with_jitter(pause_s: float, deadline: float) -> float:
    """Return one to two times `pause_s`, so that clients refused together do not retry together.

    Never shorter than the server asked for; the extra takes at most half of the time that then
    remains until `deadline`.
    """
    spare_s = max(0.0, deadline - time.monotonic() - pause_s)
    return pause_s + random.uniform(0, min(pause_s, spare_s / 2))
