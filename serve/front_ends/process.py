"""A front end: what a process does that answers gRPC in front of the engine's process."""

import asyncio
import os
import socket
import sys
from dataclasses import replace

from irv2.cli.program import configure_logging
from irv2.errors import Irv2Error
from irv2.serve.access.tls import Tls
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
from irv2.serve.front_ends.remote_model import RemoteModel
from irv2.serve.operations.logs import log_there, num_lines_lost, take_over_stderr
from irv2.serve.operations.metrics import Metrics, share_metrics
from irv2.serve.process import (
    keep_few_arenas,
    return_memory,
    tidy_up,
    wait_for_a_turn,
)
from irv2.serve.rpc.port import GrpcPort
from irv2.system.child import end_with


def run(descriptor: int, parent: int) -> None:
    """Answer until the process `parent` says stop over this descriptor, or ends."""
    end_with(parent)
    keep_few_arenas()
    wait_for_a_turn()
    asyncio.run(_run(socket.socket(fileno=descriptor)))


async def _run(end: socket.socket) -> None:
    control = Control(end, on_lost=lambda: os._exit(1))  # nothing outlives the engine's process
    start, _ = await control.receive()
    assert isinstance(start, Start)
    _configure(start)
    try:
        await _FrontEnd(start, control).run()
    except Irv2Error as error:
        control.send(Failed(error))
        sys.exit(1)


def _configure(start: Start) -> None:
    name = start.number + 1  # for people, who count from 1
    take_over_stderr(as_json=start.log_as_json)
    configure_logging(debug=start.debug, ending=f" front_end={name}")
    log_there(front_end=name)
    share_metrics(start.metrics_folder, f"front-end-{name}")


class _FrontEnd:
    """The port and its models, one after the other."""

    def __init__(self, start: Start, control: Control) -> None:
        self._start, self._control = start, control
        # What is promised over all front ends is shared out among them.
        limits = start.options.connections
        num = start.options.num_front_ends
        own = replace(
            limits,
            max_connections=limits.max_connections // num,
            max_pending=limits.max_pending // num,
        )
        self._options = replace(start.options, connections=own)
        self._metrics = Metrics(start.metrics_folder)
        self._port: GrpcPort | None = None
        self._taken: RemoteModel | None = None
        self._model: RemoteModel | None = None  # that serves
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Do what the parent says. Raises Irv2Error where the port can't be opened."""
        background = asyncio.create_task(return_memory())
        counting = asyncio.create_task(self._metrics.count_lost_lines(num_lines_lost))
        while True:
            message, descriptors = await self._control.receive()
            match message:
                case Take(layout):
                    await self._take(
                        RemoteModel(
                            layout, descriptors, self._options, self._metrics, self._start.number
                        )
                    )
                case Listen():
                    await self._listen()
                case Serve():
                    await self._serve()
                case Health(is_ready):
                    if self._port:  # else it is told once it serves
                        await self._port.tell_health(is_ready=is_ready)
                case Stop():
                    break
            self._control.send(Done())
        await self._stop()
        for task in (background, counting):
            task.cancel()

    async def _take(self, model: RemoteModel) -> None:
        await model.open()
        self._taken = model

    async def _listen(self) -> None:
        options = self._options
        assert self._taken
        tls = Tls(options.tls) if options.tls else None
        self._port = GrpcPort(options, self._metrics, self._taken, tls)
        await self._port.tell_health(is_ready=False)
        self._port.bind(self._start.names, self._start.listen)
        await self._port.start()

    async def _serve(self) -> None:
        assert self._port
        assert self._taken
        await self._taken.start()
        old, self._model = self._model, self._taken
        await self._port.use(self._model)
        if old:
            closing = asyncio.create_task(self._close(old))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        tidy_up()

    async def _close(self, old: RemoteModel) -> None:
        await old.close()
        del old  # so that the next line can free its memory
        await asyncio.to_thread(tidy_up)

    async def _stop(self) -> None:
        if self._port:
            await self._port.stop()
        if self._taken:
            await self._taken.close()
        await asyncio.gather(*self._closing)
        if self._port:
            await self._port.close()
