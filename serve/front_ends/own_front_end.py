"""The engine's process as a front end of its own: it answers the requests over HTTP.

It has places in the shared memory like the others, so that no limit and no promise knows of it.
"""

import asyncio
import os

from irv2.errors import Irv2Error
from irv2.serve.access.tokens import TokenFile
from irv2.serve.front_ends.remote_model import RemoteModel
from irv2.serve.front_ends.shared_model import SharedModel
from irv2.serve.operations.metrics import Metrics
from irv2.serve.options import ServeOptions
from irv2.serve.rpc.calls import Calls
from irv2.serve.rpc.request_log import RequestLog


class OwnFrontEnd:
    """Answers with one model after the other. Belongs to the event loop of the engine."""

    def __init__(self, options: ServeOptions, metrics: Metrics) -> None:
        """Raises UsageError where a file or a variable of the environment is wrong."""
        self._options, self._metrics = options, metrics
        self.tokens = TokenFile(options.token_file) if options.token_file else None
        self._log = RequestLog(log=options.log_requests)
        self.calls = Calls(metrics, self._log, options.default_deadline_ms / 1e3)
        self.model: RemoteModel  # that answers, from `take` on
        self._taken: RemoteModel | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None

    async def take(self, model: SharedModel) -> None:
        """Open a model; the first one refuses requests until `serve`.

        Raises Irv2Error where it can't.
        """
        try:
            memory, channel = await model.join(self._options.num_front_ends)  # after the others
            with channel:
                taken = self._remote(model, [os.dup(memory), channel.detach()])
        except OSError as error:  # no file left
            got = f"can't answer over HTTP ({error.strerror})"
            raise Irv2Error("server", got, way_out="raise ulimit -n") from error
        await taken.open()
        if self._taken is None:
            self.model = taken
            if self.tokens:
                self._watching = asyncio.create_task(self.tokens.watch())
        self._taken = taken

    async def serve(self) -> None:
        """Answer requests with the model that was taken last."""
        assert self._taken
        await self._taken.start()
        old, self.model = self.model, self._taken
        if old is not self.model:
            closing = asyncio.create_task(old.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def stop(self) -> None:
        """Refuse new requests and answer the open ones."""
        for model in {self.model, self._taken} if self._taken else ():
            await model.close()
        await asyncio.gather(*self._closing)
        if self._watching:
            self._watching.cancel()

    async def close(self) -> None:
        """Send the last traces, once all calls have ended."""
        await self._log.close()

    def _remote(self, model: SharedModel, descriptors: list[int]) -> RemoteModel:
        number = self._options.num_front_ends
        return RemoteModel(model.layout, descriptors, self._options, self._metrics, number)
