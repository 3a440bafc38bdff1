"""Answers from a Ray cluster: a process on each node does what `Here` does, for chunks of names.

A node that dies is left, and its chunks go to the others. Files are read, decoded and prepared by
our own code on the node, which must see them and the bundle at the same paths.
"""

import logging
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

from irv2.batch.here import Here
from irv2.batch.parts import Row
from irv2.batch.source import Picture, Source
from irv2.bundle import Bundle
from irv2.errors import EngineError, InputError, Irv2Error, UsageError
from irv2.system.address import host_and_port, way_out
from irv2.system.stop import raise_if_stopped

# Before ray is imported: no report to its makers, and no variable of a GPU changed without one.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import ObjectLostError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

logger = logging.getLogger(__name__)

CONNECT_S = 5.0
CHUNK = 256  # pictures
CHUNKS_PER_NODE = 2  # one is classified, the next one waits there
CHUNKS_AHEAD = 64  # answered, and waiting for an earlier one


class _Chunk(NamedTuple):
    position: int
    pictures: list[Picture]


class _Worker:
    """A node's process; its methods are called from afar."""

    def open(self, bundle: Path, source: Source, top_k: int, workers: int | None) -> str:
        """Open the bundle and return its id; raises what is wrong on this node."""
        if not source.path.exists():
            got, then = f"is not on the node {socket.gethostname()}", "mount it there"
            raise InputError(source.path, got, "the same path on every node", then)
        self._here = Here(bundle, source, top_k, workers)
        return self._here.model_id

    def rows(self, pictures: list[Picture]) -> list[Row]:
        return list(self._here.answers(pictures))


class OnRay(AbstractContextManager["OnRay"]):
    """The living nodes of a cluster, each with the bundle opened."""

    def __init__(
        self, address: str, bundle: Path, source: Source, top_k: int, workers: int | None
    ) -> None:
        """Connect to the cluster at HOST:PORT and open the bundle on every node.

        Raises EngineError where there is no cluster, or each node dies meanwhile, and what a node
        raises that lacks the bundle or the source.
        """
        self.model_id = Bundle.open(bundle).id
        _connect(address)
        arguments = (bundle.resolve(), Source(source.path.resolve()), top_k, workers)
        self._nodes: dict[Any, str] = {}  # worker -> its node's name
        for node in ray.nodes():
            if node["Alive"]:
                worker = _on_node(node).remote()
                self._nodes[worker] = f"{node['NodeManagerHostname']} ({node['NodeID'][:8]})"
        opened = {worker: worker.open.remote(*arguments) for worker in self._nodes}
        found: set[str] = set()
        for worker, answer in opened.items():
            try:
                found.add(_result(answer))
            except RayActorError:
                self._leave(worker)
        if found != {self.model_id}:
            ids = ", ".join(sorted(model_id[:12] for model_id in found))
            raise InputError(bundle, f"is {ids} on the nodes", f"{self.model_id[:12]} on all")

    def __exit__(self, *_: object) -> None:
        ray.shutdown()

    def answers(self, pictures: Iterable[Picture]) -> Iterator[Row]:
        """Yield the answers in order. Raises EngineError when the last node is gone."""
        pictures = iter(pictures)
        chunks = iter(lambda: list(islice(pictures, CHUNK)), [])
        unread = map(_Chunk, count(), chunks)
        returned: deque[_Chunk] = deque()  # by nodes that died
        running: dict[Any, tuple[Any, _Chunk]] = {}  # answer to come -> worker, chunk
        done: dict[int, list[Row]] = {}
        position = 0
        while True:
            load = Counter(worker for worker, _ in running.values())
            for worker in CHUNKS_PER_NODE * list(self._nodes):
                if load[worker] == CHUNKS_PER_NODE:
                    continue
                if returned:  # however many are ahead: they may wait for this one
                    chunk: _Chunk | None = returned.popleft()
                else:
                    chunk = next(unread, None) if len(done) < CHUNKS_AHEAD else None
                if chunk is None:
                    break
                running[worker.rows.remote(chunk.pictures)] = worker, chunk
                load[worker] += 1
            if not running:
                return
            [answer], _ = ray.wait(list(running))
            worker, chunk = running.pop(answer)
            try:
                done[chunk.position] = _result(answer)
            except ObjectLostError:  # its node died before the answer was fetched
                returned.append(chunk)
            except RayActorError:
                returned.append(chunk)
                self._leave(worker)
            while position in done:
                yield from done.pop(position)
                position += 1

    def _leave(self, worker: Any) -> None:  # noqa: ANN401 (Ray's handle)
        name = self._nodes.pop(worker, None)
        if name is None:  # for another of its chunks
            return
        if not self._nodes:
            raise EngineError(name, "the last node of the cluster is gone", "a living one")
        logger.warning("%s: the node is gone; the others go on", name)


def _connect(address: str) -> None:
    place = host_and_port(address)
    if place is None:
        raise UsageError("--ray", repr(address), "HOST:PORT", way_out(address))
    at, start = f"Ray at {address}", "start one with `ray start --head`"
    try:  # Ray itself would wait for minutes
        socket.create_connection(place, timeout=CONNECT_S).close()
    except (OSError, UnicodeError) as error:  # UnicodeError for names such as a..b
        raise EngineError(at, f"does not answer ({error})", "a cluster", start) from error
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, ValueError, RuntimeError) as error:
        raise_if_stopped()
        raise EngineError(at, str(error), "a cluster", start) from error
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray's own would exit with another status


def _on_node(node: dict[str, Any]) -> Any:  # noqa: ANN401 (Ray's class of actors)
    """Prepare a worker for a node; it takes a GPU if there is one, and all cores by threads."""
    strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    num_gpus = min(1, node["Resources"].get("GPU", 0))
    worker = ray.remote(_Worker)
    return worker.options(num_cpus=0, num_gpus=num_gpus, scheduling_strategy=strategy)


def _result(answer: Any) -> Any:  # noqa: ANN401 (Ray's future)
    """Wait for an answer; raises the worker's own error where it has failed with one of ours."""
    try:
        return ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, Irv2Error):
            raise error.cause from None
        raise
