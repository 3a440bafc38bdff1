"""Requests in flight: formed as images come, sent side by side, answered in order.

Images may come slowly (a camera): what has come is sent, and its answers don't wait for more.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from irv2.client.wire import OpenRequest
from irv2.results import Result
from irv2.types import ImageSource
from irv2.v1 import classifier_pb2

LINGER_S = 0.005  # how long a request waits to be filled: enough for files, little for a camera


class InFlight:
    """One pass over images: a thread reads them, another forms requests, a pool sends those.

    Up to `window` requests are in flight. Another `window` of them may be answered or queued, so
    that one slow answer does not stop the sending of others.
    """

    def __init__(
        self,
        images: Iterable[ImageSource],
        limits: classifier_pb2.Limits,
        send: Callable[[list[ImageSource]], list[Result]],
        window: int,
    ) -> None:
        self._images, self._limits, self._send, self._window = images, limits, send, window
        self._pool = ThreadPoolExecutor(window, thread_name_prefix="irv2-client")
        self._changed = threading.Condition()  # guards what follows
        self._open, self._opened_at = OpenRequest(limits), 0.0
        self._answers: deque[Future[list[Result]]] = deque()  # of requests, in order
        self._num_in_flight = 0
        self._all_read = self._all_sent = self._stopped = False
        self._failure: BaseException | None = None  # what `images` raised

    def results(self) -> Iterator[Result]:
        """Yield the results in order; then raise what the iteration over the images raised."""
        try:
            for work in (self._read, self._form_requests):
                # Daemons: a program may end while they wait for an image.
                threading.Thread(target=work, name="irv2-client", daemon=True).start()
            while answer := self._next_answer():
                results = answer.result()
                with self._changed:
                    self._answers.popleft()
                    self._changed.notify_all()
                yield from results
            if self._failure:
                raise self._failure
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()
            # After Ctrl-C, don't wait for a silent server; closing the client ends its requests.
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _next_answer(self) -> Future[list[Result]] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._answers or self._all_sent)
            return self._answers[0] if self._answers else None

    def _read(self) -> None:
        try:
            for image in self._images:
                with self._changed:
                    while not (self._stopped or self._open.add(image)):
                        self._changed.notify_all()  # the request is full
                        self._changed.wait()
                    if self._stopped:
                        return
                    if len(self._open.images) == 1:  # else nobody waits for it
                        self._opened_at = time.monotonic()
                        self._changed.notify_all()
        except BaseException as error:  # raised again where results are read
            self._failure = error
        finally:
            with self._changed:
                self._all_read = True
                self._changed.notify_all()

    def _form_requests(self) -> None:
        with self._changed:
            while self._wait_for_images():
                request, self._open = self._open.images, OpenRequest(self._limits)
                try:
                    answer = self._pool.submit(self._send, request)
                except RuntimeError as error:  # the program is ending
                    self._failure = error
                    break
                self._answers.append(answer)
                self._num_in_flight += 1
                self._changed.notify_all()
                answer.add_done_callback(self._make_room)
            self._all_sent = True
            self._changed.notify_all()

    def _wait_for_images(self) -> bool:
        """Wait for room and for images, then a moment for more; return False at the end."""
        self._changed.wait_for(
            lambda: self._stopped or (self._has_room() and (self._open.images or self._all_read))
        )
        self._changed.wait_for(
            lambda: self._stopped or self._all_read or self._open.is_full,
            timeout=self._opened_at + LINGER_S - time.monotonic(),
        )
        return not self._stopped and bool(self._open.images)

    def _has_room(self) -> bool:
        return self._num_in_flight < self._window and len(self._answers) < 2 * self._window

    def _make_room(self, _: Future[list[Result]]) -> None:
        with self._changed:
            self._num_in_flight -= 1
            self._changed.notify_all()
