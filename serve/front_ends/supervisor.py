"""The front ends as the engine's process sees them: started, told what to do, replaced, stopped."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Coroutine, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from typing import Any

from irv2.errors import Irv2Error
from irv2.serve.access.address import Address, UnixSocket, as_named, reserve
from irv2.serve.front_ends.control import (
    Control,
    Done,
    Failed,
    Health,
    Listen,
    Serve,
    Start,
    Stop,
    Take,
)
from irv2.serve.front_ends.own_front_end import OwnFrontEnd
from irv2.serve.front_ends.shared_model import SharedModel
from irv2.serve.operations.logs import is_json
from irv2.serve.options import ServeOptions

logger = logging.getLogger(__name__)

PROGRAM = "irv2.serve.front_ends"
# Before a front end is replaced; longer and longer while none gets as far as to serve.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
ASK_EVERY_S = 10.0  # whether a front end still does what it is told
ANSWER_S = 30.0  # one that does not within this time hangs, and is replaced
START_S = 60.0  # the same for a model that it opens, and for its own start before that
END_S = 10.0  # for the end of a front end, beyond --stop-timeout-s
# Those that reach a whole group of processes, from a terminal, systemd or Kubernetes. Front ends
# have them blocked, and end when they are told.
_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class FrontEnds:
    """The gRPC port, shared by several processes. Belongs to one event loop."""

    def __init__(
        self,
        options: ServeOptions,
        model: SharedModel,
        metrics_folder: str,
        own: OwnFrontEnd | None = None,
        ask_every_s: float = ASK_EVERY_S,
        answer_s: float = ANSWER_S,
    ) -> None:
        """`own` is this process's, if it answers over HTTP; it gets its models from here too."""
        self._own = own
        self._ask_every_s, self._answer_s = ask_every_s, answer_s
        self._options, self._model, self._metrics_folder = options, model, metrics_folder
        self._names: list[str] = []
        self._listen: Address | UnixSocket = options.listen
        self._held: list[socket.socket] = []
        self._processes: dict[int, _Process] = {}  # by number
        self._keeping: list[asyncio.Task[None]] = []
        self._serves = self._is_ready = False
        self._changing = asyncio.Lock()  # held while a front end or all of them take a model

    @property
    def pids(self) -> list[int]:
        """The processes that live."""
        return [each.pid for each in self._processes.values() if not each.gone.is_set()]

    def bind(self, names: Sequence[str], listen: Address | UnixSocket) -> int:
        """Note gRPC's `names` of the address `listen`; return the port."""
        port = int(names[0].rpartition(":")[2])
        self._names, self._listen = list(names), listen.on_port(port)
        return port

    async def start(self) -> None:
        """Open the port in all front ends. Raises Irv2Error where one can't."""
        if self._own:
            await self._own.take(self._model)
        self._held = reserve(self._names)
        numbers = range(self._options.num_front_ends)
        await asyncio.gather(*map(self._spawn, numbers))
        for process in self._processes.values():
            await self._open(process)
        self._keeping = [asyncio.create_task(self._keep(number)) for number in numbers]

    async def use(self, model: SharedModel) -> None:
        """Answer requests with this model from now on; at the start, the one that was taken.

        A front end that ends meanwhile is replaced by one that takes it. Raises Irv2Error where
        that happens at the start, and where this process can't take it: nothing has changed then.
        """
        async with self._changing:
            if self._own and model is not self._model:
                await self._own.take(model)
            was_serving, self._serves = self._serves, True
            before, self._model = self._model, model
            if before is not model:
                await self._all(*(each.take(model) for each in self._processes.values()))
            failures = await self._all(*(each.ask(Serve()) for each in self._processes.values()))
            if self._own:
                await self._own.serve()
        if failures and not was_serving:
            raise failures[0]

    async def tell_health(self, *, is_ready: bool) -> None:
        """Tell clients and load balancers whether new requests are wanted."""
        self._is_ready = is_ready
        await self._all(*(each.ask(Health(is_ready)) for each in self._processes.values()))

    async def stop(self) -> None:
        """Refuse new requests, answer the open ones, end all front ends."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        processes = list(self._processes.values())
        for process in processes:
            process.tell(Stop())
        gone = [asyncio.create_task(process.gone.wait()) for process in processes]
        if gone:
            await asyncio.wait(gone, timeout=self._options.stop_timeout_s + END_S)
        await asyncio.gather(*(process.end() for process in processes))
        if self._own:
            await self._own.stop()

    async def close(self) -> None:
        """Give the port back."""
        if self._own:
            await self._own.close()
        for holder in self._held:
            holder.close()

    async def _spawn(self, number: int) -> None:
        """Start a front end that takes the model. Raises Irv2Error where it can't."""
        assert isinstance(self._listen, Address)
        start = Start(
            number=number,
            options=self._options,
            listen=self._listen,
            names=self._names,
            log_as_json=is_json(),
            debug=logging.getLogger().isEnabledFor(logging.DEBUG),
            metrics_folder=self._metrics_folder,
        )
        try:
            self._processes[number] = process = _Process(start, self._answer_s)
            await process.take(self._model)
        except OSError as error:  # no memory, process or file left
            got = f"can't be started ({error.strerror})"
            way_out = "lower --front-ends, or allow more memory, processes and open files"
            raise Irv2Error(f"front end {number + 1}", got, way_out=way_out) from error

    async def _open(self, process: "_Process") -> None:
        """Let a front end open the port, one at a time. Raises Irv2Error where it can't."""
        with as_named(self._names):
            await process.ask(Listen())

    async def _keep(self, number: int) -> None:
        """Replace the front end whenever it ends, until cancelled."""
        pause_s = FIRST_PAUSE_S
        while True:
            process = self._processes[number]
            await self._watch(process)
            status = await process.end()
            logger.error(
                "front_end_lost front_end=%d pid=%d status=%d", number + 1, process.pid, status
            )
            await asyncio.sleep(pause_s)
            try:
                await self._replace(number)
                pause_s = FIRST_PAUSE_S
            except Irv2Error as error:
                logger.error("front_end_failed front_end=%d error=%s", number + 1, error)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _watch(self, process: "_Process") -> None:
        """Wait until it has ended, or hangs."""
        while not process.gone.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(process.gone.wait(), self._ask_every_s)
            if not process.gone.is_set():
                await self._all(process.ask(Health(self._is_ready)))

    async def _replace(self, number: int) -> None:
        async with self._changing:
            await self._spawn(number)
            process = self._processes[number]
            await self._open(process)
            if self._serves:
                await process.ask(Serve())
                await process.ask(Health(self._is_ready))
        logger.info("front_end_started front_end=%d pid=%d", number + 1, process.pid)

    @staticmethod
    async def _all(*works: Coroutine[Any, Any, None]) -> list[Irv2Error]:
        """Wait for all of them; return the failures of front ends that have ended."""
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        failures = [each for each in outcomes if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, Irv2Error):
                raise failure
        return [failure for failure in failures if isinstance(failure, Irv2Error)]


class _Process:
    """One front end, from its start to its end."""

    def __init__(self, start: Start, answer_s: float) -> None:
        self._number, self._answer_s = start.number, answer_s
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        arguments = [str(theirs.fileno()), str(os.getpid())]
        with theirs, _blocked(_SIGNALS):
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._popen.pid
        self.gone = asyncio.Event()
        self._asked: deque[asyncio.Future[None]] = deque()  # without a reply
        self._failure = Irv2Error(self, "ended before it answered", way_out="its own lines say why")
        self._control = Control(mine)
        self._control.send(start)
        self._reading = asyncio.create_task(self._read())

    def __str__(self) -> str:
        return f"front end {self._number + 1}"

    async def take(self, model: SharedModel) -> None:
        """Let it take this model. Raises Irv2Error where it can't; it is ended then."""
        try:
            memory, channel = await model.join(self._number)
        except OSError as error:  # no file left
            self._popen.kill()
            got = f"can't take the model ({error.strerror})"
            raise Irv2Error(self, got, way_out="raise ulimit -n") from error
        with channel:
            asked = self.ask(Take(model.layout), [memory, channel.fileno()], START_S)
        await asked

    def ask(
        self, message: object, descriptors: Sequence[int] = (), within_s: float | None = None
    ) -> Coroutine[Any, Any, None]:
        """Send a message now; wait until it has done that. Raises Irv2Error where it ends first."""
        asked: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.gone.is_set():
            asked.set_exception(self._failure)
        else:
            self._asked.append(asked)
            self._control.send(message, descriptors)
        return self._until(asked, within_s or self._answer_s)

    def tell(self, message: object) -> None:
        """Send a message that has no reply."""
        self._control.send(message)

    async def end(self) -> int:
        """Kill it if it lives, and return its exit status."""
        if not self.gone.is_set():
            self._popen.kill()
        status = await asyncio.to_thread(self._popen.wait)
        self._reading.cancel()
        self._control.close()
        return status

    async def _until(self, asked: "asyncio.Future[None]", within_s: float) -> None:
        try:
            await asyncio.wait_for(asked, within_s)
        except TimeoutError as error:
            self._popen.kill()
            got = f"has not done what it was told within {within_s:g} s"
            way_out = "lower --front-ends where the machine is too busy for all"
            raise Irv2Error(self, got, way_out=way_out) from error

    async def _read(self) -> None:
        while (message := (await self._control.receive())[0]) is not None:
            match message:
                case Done():
                    asked = self._asked.popleft()
                    if not asked.done():
                        asked.set_result(None)
                case Failed(error):
                    self._failure = error
        self.gone.set()
        for asked in self._asked:
            if not asked.done():
                asked.set_exception(self._failure)


@contextmanager
def _blocked(signals: Set[signal.Signals]) -> Iterator[None]:
    """Block signals for the block, and for good in a process that is started there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
