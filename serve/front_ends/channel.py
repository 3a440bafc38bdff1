"""Short records between a front end and the engine's process, many in one piece.

A record says what happened to a place of the shared memory; everything else lies there.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

_RECORD = struct.Struct("<II")  # a place, and one of the numbers below
SUBMIT, WITHDRAW = range(2)  # to the engine's process
# Its reply, one to each SUBMIT: an answer lies there, or there is none, and why.
ANSWERED, EXPIRED, FAILED, WITHDRAWN = range(4)


class Channel(asyncio.Protocol):
    """One end of a stream socket. Belongs to one event loop."""

    def __init__(self, on_record: Callable[[int, int], None], on_lost: Callable[[], None]) -> None:
        """`on_record` hears of each record, `on_lost` once that no more will come."""
        self._on_record, self._on_lost = on_record, on_lost
        self._transport: asyncio.Transport | None = None
        self._begun, self._unsent = b"", bytearray()

    async def open(self, end: socket.socket) -> None:
        """Send and receive over this socket, which is then the channel's."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_unix_connection(lambda: self, sock=end)

    def send(self, place: int, what: int) -> None:
        """Send a record, together with all others of this step of the event loop."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unsent += _RECORD.pack(place, what)

    def close(self) -> None:
        """Send what is unsent, then close the socket."""
        self._flush()
        if self._transport:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Pass on the records that are whole."""
        data = self._begun + data
        whole = len(data) - len(data) % _RECORD.size
        self._begun = data[whole:]
        for place, what in _RECORD.iter_unpack(data[:whole]):
            self._on_record(place, what)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell that the other end is closed, or this one."""
        self._on_lost()

    def _flush(self) -> None:
        if self._transport and self._unsent:
            self._transport.write(bytes(self._unsent))
        self._unsent.clear()
