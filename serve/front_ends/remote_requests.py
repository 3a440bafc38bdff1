"""The requests of one front end, in the queue of the engine's process."""

import asyncio
import socket
from functools import partial

from irv2.errors import Expired
from irv2.serve.front_ends.channel import (
    ANSWERED,
    EXPIRED,
    FAILED,
    SUBMIT,
    WITHDRAWN,
    Channel,
)
from irv2.serve.front_ends.segment import DONE, FREE, RUNNING, Segment
from irv2.serve.pipeline.batcher import Answer, Batcher, Entry


class RemoteRequests:
    """Submits what the front end submits, and answers it. Belongs to the batcher's event loop."""

    def __init__(self, segment: Segment, number: int, batcher: Batcher) -> None:
        """`number` is that of the front end, from 0."""
        self._segment, self._number, self._batcher = segment, number, batcher
        self._states, self._images = segment.states[number], segment.images[number]
        self._deadlines = segment.deadlines[number]
        self._channel = Channel(self._receive, self.abandon)
        self._entries: dict[int, Entry] = {}  # those without an answer, by place
        self.is_closed = asyncio.Event()  # the front end sends no more, and reads nothing

    async def open(self) -> socket.socket:
        """Return the front end's end of the channel, to be closed once it has it."""
        mine, theirs = socket.socketpair()
        await self._channel.open(mine)
        return theirs

    def abandon(self) -> None:
        """Give up all requests and free all places: the front end has ended, or has no more."""
        if self.is_closed.is_set():
            return
        self.is_closed.set()
        for entry in self._entries.values():
            self._give_up(entry)
        self._entries.clear()
        self._states[:] = FREE
        self._channel.close()

    def _receive(self, place: int, what: int) -> None:
        if what == SUBMIT:
            started, answered = partial(self._note_start, place), partial(self._reply, place)
            deadline = float(self._deadlines[place])
            entry = self._batcher.submit(self._images[place], deadline, started)
            self._entries[place] = entry
            entry.answer.add_done_callback(answered)
        elif place in self._entries:  # else the reply is on its way already
            self._give_up(self._entries[place])

    def _give_up(self, entry: Entry) -> None:
        """Its image was copied if it has started, and no answer is written once it is cancelled."""
        entry.answer.cancel()
        self._batcher.withdraw(entry)

    def _note_start(self, place: int, _: Entry) -> None:
        self._states[place] = RUNNING

    def _reply(self, place: int, answer: "asyncio.Future[Answer]") -> None:
        if self.is_closed.is_set():
            return  # another front end may have the place
        del self._entries[place]
        if answer.cancelled():
            what = WITHDRAWN
        elif error := answer.exception():  # an engine's failure is in the log
            what = EXPIRED if isinstance(error, Expired) else FAILED
        else:
            self._write(place, answer.result())
            what = ANSWERED
        self._states[place] = DONE
        self._channel.send(place, what)

    def _write(self, place: int, answer: Answer) -> None:
        at = self._number, place
        self._segment.logits[at] = answer.logits
        self._segment.seconds[at] = answer.queue_s, answer.inference_s
