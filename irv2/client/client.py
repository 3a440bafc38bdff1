"""The client: the same answers as `Bundle.classify`, from a server.

    with Client("host:8500") as client:
        results = client.classify(["a.jpg", image_bytes, array_hwc_uint8], top_k=5)

Requests stay under the server's limits. A server that is overloaded or restarting is asked again
when it says so, within the time allowed.
"""

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain, islice
from typing import Any, NamedTuple, Self

import grpc
from google.protobuf.message import Message

from irv2.client.channel import Tls, open_channel
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
from irv2.protocol import error_from_call, is_token, retry_after_s
from irv2.results import DEFAULT_TOP_K, Result
from irv2.types import ImageSource
from irv2.v1 import classifier_pb2, classifier_pb2_grpc

__all__ = ["Client", "ImageSource", "Tls"]

DEFAULT_TIMEOUT_S = 60.0  # of one request, where the caller names none
LONGEST_S = 1e9  # gRPC's clock ends in 2262: what is beyond it has expired
# Of each server: one request is decoded while another is on its way, and of images so many that a
# batch can run while the next waits and one more is decoded.
REQUESTS_PER_SERVER, BATCHES_PER_SERVER = 2, 3
MOST_UNDER_WAY = 224  # of 256 images that a server admits by default: others may ask too
# Where nobody says when to come back: long enough for a server to start on a CPU.
UNAVAILABLE_PAUSES_S = (0.1, 0.3, 0.6, 1.0, 1.0, 1.0)
MIN_PAUSE_S = 0.01


class Client:
    """A connection to one server, or to several that take turns. May be shared by threads."""

    def __init__(
        self, addresses: str | Sequence[str], *, tls: Tls | None = None, token: str | None = None
    ) -> None:
        """`addresses`: HOST:PORT, or a list of them. Connects when first used.

        `tls` None speaks without encryption. `token` is sent with every request. Raises UsageError
        where an address, a certificate or the token can't be used.
        """
        if token and not is_token(token):
            raise UsageError("token", "one that no header can carry", "one word of printable ASCII")
        names = [addresses] if isinstance(addresses, str) else list(addresses)
        self.name = ", ".join(names)  # for messages
        self._num_servers = len(names)
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = open_channel(names, tls)
        self._stub = classifier_pb2_grpc.ClassifierStub(self._channel)
        self._known: _Known | None = None
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; requests of other threads end with a RequestError."""
        self._closed.set()
        self._channel.close()

    def model(self) -> classifier_pb2.Model:
        """The model served now: id, classes, precision, backend and the gate's evidence.

        A server may take another one at any time: a Result names the one that gave it.
        """
        return self._describe(None).model

    def classify(
        self,
        images: Iterable[ImageSource],
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
    ) -> list[Result]:
        """Classify paths, encoded bytes or uint8 RGB (H, W, 3) arrays; one Result per image.

        An image that can't be read or that the server refuses gives a Result with an error.
        `timeout_s` is for all images together; None allows a minute per request. Raises Expired,
        Overloaded, NotServing or another RequestError where there is no answer, and UsageError
        where `timeout_s` is nan.
        """
        return list(self.iter_classify(images, top_k, timeout_s))

    def iter_classify(
        self,
        images: Iterable[ImageSource],
        top_k: int = DEFAULT_TOP_K,
        timeout_s: float | None = None,
    ) -> Iterator[Result]:
        """The same, result by result, for many images; each is read when it is needed.

        So many requests are under way that no server waits for the next one.
        """
        if timeout_s is not None and math.isnan(timeout_s):
            raise UsageError("timeout_s", "nan", "seconds")
        deadline = None if timeout_s is None else time.monotonic() + timeout_s

        def send(request: list[ImageSource], limits: classifier_pb2.Limits) -> list[Result]:
            try:
                return self._classify_request(request, top_k, deadline)
            except (InvalidRequest, MessageTooLarge):
                self._known = None
                found = self._server(deadline).limits
                if found == limits:
                    raise
            parts = split_into_requests(request, found)  # the server was started anew
            return list(chain.from_iterable(send(part, found) for part in parts))

        known = self._server(deadline)
        requests = split_into_requests(images, known.limits)
        first = list(islice(requests, 2))
        send_first = partial(send, limits=known.limits)
        if len(first) < 2:  # the usual case needs no threads
            yield from chain.from_iterable(map(send_first, first))
        else:
            window = known.window * self._num_servers
            yield from _in_order(send_first, chain(first, requests), window)

    def _server(self, deadline: float | None) -> "_Known":
        """Asked for once, and again when a request breaks a limit: those are the server's options.

        The window is a guess, and may age.
        """
        known = self._known  # other threads may forget it
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
        results: dict[int, Result] = {}  # of those that can't be sent
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
        """One unary call, repeated while the server says that it helps and time is left."""
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
                refusal, pause_s = error_from_call(error, self.name), retry_after_s(error)
            except ValueError:  # gRPC's word for a channel that was closed a moment ago
                if self._closed.is_set():
                    break
                raise
            if pause_s is None and isinstance(refusal, NotServing):
                pause_s = next(pauses_s, None)
            if pause_s is None or time.monotonic() + pause_s >= deadline:
                raise refusal
            self._closed.wait(_with_jitter(max(pause_s, MIN_PAUSE_S), deadline))
        raise RequestError(self.name, "the client was closed", way_out="make another one")


class _Known(NamedTuple):
    """Of a server: its limits, and how many requests to have under way."""

    limits: classifier_pb2.Limits
    window: int


def _window(description: classifier_pb2.GetModelResponse) -> int:
    """Enough requests to fill the server's batches, not more than its queue would take."""
    images = min(BATCHES_PER_SERVER * description.model.max_batch, MOST_UNDER_WAY)
    return max(REQUESTS_PER_SERVER, math.ceil(images / images_per_request(description.limits)))


def _with_jitter(pause_s: float, deadline: float) -> float:
    """A pause from `pause_s` to twice as long, so that clients refused together come back apart.

    Never earlier than the server said, and of the time until `deadline` half is left for the call.
    """
    spare_s = max(0.0, deadline - time.monotonic() - pause_s)
    return pause_s + random.uniform(0, min(pause_s, spare_s / 2))


def _in_order(
    send: Callable[[list[ImageSource]], list[Result]],
    requests: Iterable[list[ImageSource]],
    window: int,
) -> Iterator[Result]:
    """The results of all requests, up to `window` of them under way at a time.

    As many more wait, so that one that is answered late does not keep others from being sent.
    """
    open_ones: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(window, thread_name_prefix="irv2-client")
    try:
        for request in requests:
            if len(open_ones) == 2 * window:
                yield from open_ones.popleft().result()
            open_ones.append(pool.submit(send, request))
        for answer in open_ones:
            yield from answer.result()
    finally:
        # After Ctrl-C nobody waits for a server that does not answer; closing the client ends that.
        pool.shutdown(wait=False, cancel_futures=True)
