"""Answers from servers: each takes pictures as fast as it answers, and one that fails is left.

A client per server keeps that server's batches full (irv2/client/in_flight.py). What a failed one
had not answered goes to the others, and every few seconds it is asked whether it is back.
"""

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from irv2.batch.loading import Encoded, load, untraced
from irv2.batch.parts import Row
from irv2.batch.source import Picture, Source
from irv2.client import Client
from irv2.errors import RequestError, UsageError
from irv2.results import Result
from irv2.system.ahead import map_ahead

logger = logging.getLogger(__name__)

READERS = 16  # threads; they wait for a disk or a network
READ_AHEAD = 64  # pictures held in memory beside those in flight
ROWS_AHEAD = 16_384  # answers that may wait for an earlier one
ASK_AGAIN_S = 10.0
MAX_TRIES = 4  # of a picture, on servers that then failed


class Servers(AbstractContextManager["Servers"]):
    """Servers of one model."""

    def __init__(
        self, clients: Sequence[Client], source: Source, top_k: int, workers: int | None
    ) -> None:
        """Ask each server for its model; one that does not answer may come later.

        Raises a RequestError if none answers, and UsageError if they serve several models.
        """
        self._clients, self._source, self._top_k = clients, source, top_k
        self._workers = workers or READERS
        with ThreadPoolExecutor(len(clients)) as pool:
            found = list(pool.map(_model_or_error, clients))
        models = {c.name: f for c, f in zip(clients, found, strict=True) if isinstance(f, str)}
        errors = [error for error in found if isinstance(error, RequestError)]
        if not models:
            raise errors[0]
        for error in errors:
            logger.warning("%s; going on without it", error)
        if len(set(models.values())) > 1:
            got = ", ".join(f"{name} serves {model[:12]}" for name, model in models.items())
            raise UsageError("--server", got, "one model", "name servers of the same bundle")
        self.model_id = next(iter(models.values()))
        self.name = ", ".join(client.name for client in clients)

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()

    def answers(self, pictures: Iterable[Picture]) -> Iterator[Row]:
        """Yield the answers in order. Raises the last server's RequestError if all have failed."""
        with ThreadPoolExecutor(self._workers, thread_name_prefix="read") as pool:
            try:
                encoded = map_ahead(pool, partial(load, self._source), pictures, READ_AHEAD)
                yield from _Pass(self._clients, encoded, self._top_k, self.model_id).rows()
            finally:
                pool.shutdown(cancel_futures=True)


class _Open(NamedTuple):
    """A picture that waits for its answer, and its position in this pass."""

    position: int
    encoded: Encoded


class _Session:
    """What a server has taken and not answered, in the order in which it will be answered."""

    def __init__(self) -> None:
        self.taken: deque[_Open] = deque()
        self.is_over = False


class _Pass:
    """One pass over pictures, with a thread for each server."""

    def __init__(
        self, clients: Sequence[Client], encoded: Iterator[Encoded], top_k: int, model_id: str
    ) -> None:
        self._clients, self._top_k, self._model_id = clients, top_k, model_id
        self._changed = threading.Condition()  # guards what follows
        self._unread = enumerate(encoded)
        self._returned: deque[_Open] = deque()  # by servers that failed
        self._tries = Counter[int]()  # by position, of those returned
        self._rows: dict[int, Row] = {}  # answered, by position
        self._next = 0  # position of the row to yield
        self._num_open = 0
        self._num_working = len(clients)
        self._all_read = self._stopped = False
        self._failure: Exception | None = None  # of the last server, or unforeseen

    def rows(self) -> Iterator[Row]:
        for client in self._clients:
            # Daemons: a program may end while a server is silent.
            threading.Thread(target=self._work, args=(client,), daemon=True).start()
        try:
            while (row := self._next_row()) is not None:
                yield row
        finally:
            with self._changed:
                self._stopped = True
                self._changed.notify_all()

    def _next_row(self) -> Row | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._next in self._rows or self._failure or self._is_done()
            )
            row = self._rows.pop(self._next, None)
            if row is None and self._failure:
                raise self._failure
            self._next += 1
            self._changed.notify_all()
            return row

    def _is_done(self) -> bool:
        return self._all_read and not self._num_open and not self._returned

    def _work(self, client: Client) -> None:
        is_back = True
        while is_back:
            session = _Session()
            try:
                for result in client.iter_classify(self._take(session), self._top_k):
                    self._record(session, result, client)
                return
            except RequestError as error:
                is_back = self._leave(session, client, error) and self._wait_for(client)
            except Exception as error:
                with self._changed:
                    self._failure = error  # unforeseen: raised where rows are read
                    self._changed.notify_all()
                return

    def _take(self, session: _Session) -> Iterator[bytes]:
        """Yield pictures for one server until all are answered; read in a thread of its client."""
        while (taken := self._next_open(session)) is not None:
            yield taken.encoded.content

    def _next_open(self, session: _Session) -> _Open | None:
        with self._changed:
            while True:
                self._changed.wait_for(
                    lambda: self._is_over(session) or self._returned or self._may_read()
                )
                if self._is_over(session):
                    return None
                taken = self._returned.popleft() if self._returned else self._read()
                if taken is not None:
                    session.taken.append(taken)
                    self._num_open += 1
                    return taken

    def _is_over(self, session: _Session) -> bool:
        return self._stopped or session.is_over or self._is_done()

    def _may_read(self) -> bool:
        return not self._all_read and len(self._rows) < ROWS_AHEAD

    def _read(self) -> _Open | None:
        """Return the next picture; record at once that one can't be read, and return None."""
        try:
            found = next(self._unread, None)
        except Exception as error:  # unforeseen; the next call would seem to be the end
            self._failure = self._failure or error
            self._changed.notify_all()
            raise
        if found is None:
            self._all_read = True
        elif found[1].error:
            position, encoded = found
            self._rows[position] = Row(encoded.name, "", Result(error=encoded.error))
        self._changed.notify_all()
        return None if found is None or found[1].error else _Open(*found)

    def _record(self, session: _Session, result: Result, client: Client) -> None:
        if result.model_id not in ("", self._model_id):  # "": never sent, too large for a message
            got = f"changed to model {result.model_id[:12]} meanwhile"
            raise RequestError(client.name, got, self._model_id[:12], "serve that one again")
        with self._changed:
            position, encoded = session.taken.popleft()
            if result.error:
                result = replace(result, error=untraced(result.error, encoded.name))
            self._rows[position] = Row(encoded.name, encoded.sha256, result)
            self._num_open -= 1
            self._changed.notify_all()

    def _leave(self, session: _Session, client: Client, error: RequestError) -> bool:
        """Give what a failed server had to the others; return whether there are any."""
        with self._changed:
            session.is_over = True
            self._returned.extend(session.taken)
            self._num_open -= len(session.taken)
            self._num_working -= 1
            positions = [each.position for each in session.taken]
            self._tries.update(positions)
            if not self._num_working or any(self._tries[p] >= MAX_TRIES for p in positions):
                self._failure = self._failure or error
            self._changed.notify_all()
            if self._failure or self._stopped:
                return False
        logger.warning("%s; the other servers go on", error)
        return True

    def _wait_for(self, client: Client) -> bool:
        """Ask a server every few seconds whether it is back; return False at the end."""
        while True:
            with self._changed:
                over = self._changed.wait_for(
                    lambda: self._stopped or self._is_done() or self._failure, ASK_AGAIN_S
                )
            if over:
                return False
            try:
                is_back = client.model().id == self._model_id
            except RequestError:
                continue
            if is_back:
                with self._changed:
                    self._num_working += 1
                logger.info("%s answers again", client.name)
                return True


def _model_or_error(client: Client) -> str | RequestError:
    try:
        return client.model().id
    except RequestError as error:
        return error
