"""What the engine's process and a front end say to each other beside the requests."""

import asyncio
import pickle
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from irv2.errors import Irv2Error
from irv2.serve.access.address import Address
from irv2.serve.front_ends.segment import Layout
from irv2.serve.options import ServeOptions

_MAX_BYTES, _MAX_DESCRIPTORS = 2**16, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """To a new front end: who it is, and where it listens."""

    number: int  # from 0
    options: ServeOptions
    listen: Address
    names: list[str]  # gRPC's, of that address
    log_as_json: bool
    debug: bool
    metrics_folder: str


@dataclass(frozen=True, slots=True)
class Take:
    """Open this model; with the descriptors of its memory and of the channel to its engine."""

    layout: Layout


@dataclass(frozen=True, slots=True)
class Listen:
    """Open the port, after the first model."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Answer requests with the model that was taken last."""


@dataclass(frozen=True, slots=True)
class Health:
    """Tell clients whether new requests are wanted."""

    is_ready: bool


@dataclass(frozen=True, slots=True)
class Done:
    """From a front end, about each of the messages above, in their order."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Refuse new requests, answer the open ones, end."""


@dataclass(frozen=True, slots=True)
class Failed:
    """From a front end: it can't start, and why."""

    error: Irv2Error


class Control:
    """One end of the connection. Belongs to one event loop."""

    def __init__(self, end: socket.socket, on_lost: Callable[[], None] = lambda: None) -> None:
        """`on_lost` is called once, when the other process has ended."""
        end.setblocking(False)
        self._end, self._on_lost = end, on_lost
        self._received: asyncio.Queue[tuple[Any, list[int]]] = asyncio.Queue()
        asyncio.get_running_loop().add_reader(end, self._read)

    def send(self, message: object, descriptors: Sequence[int] = ()) -> None:
        """Send a message; one to a process that has ended is lost, as `receive` will tell."""
        with suppress(OSError):
            socket.send_fds(self._end, [pickle.dumps(message)], descriptors)

    async def receive(self) -> tuple[Any, list[int]]:
        """Return the next message and its descriptors, which the caller closes; None at the end."""
        return await self._received.get()

    def close(self) -> None:
        """Close this end; again does nothing."""
        if self._end.fileno() != -1:
            asyncio.get_running_loop().remove_reader(self._end)
            self._end.close()

    def _read(self) -> None:
        try:
            data, descriptors, *_ = socket.recv_fds(self._end, _MAX_BYTES, _MAX_DESCRIPTORS)
        except OSError:  # reset, by the end of a process that had not read everything
            data, descriptors = b"", []
        if data:
            self._received.put_nowait((pickle.loads(data), descriptors))
        else:
            asyncio.get_running_loop().remove_reader(self._end)
            self._received.put_nowait((None, []))
            self._on_lost()
