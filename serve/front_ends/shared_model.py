"""One model that serves, in the engine's process: its engine and queue, behind front ends."""

import asyncio
import os
import socket

from irv2.serve.front_ends.channel import Channel
from irv2.serve.front_ends.remote_batcher import RemotePromises
from irv2.serve.front_ends.remote_requests import RemoteRequests
from irv2.serve.front_ends.segment import Layout, Segment
from irv2.serve.operations.metrics import Metrics, ModelMetrics
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.admission import Admission
from irv2.serve.pipeline.engine import Engine, OnHealth, OpenedModel
from irv2.system.machine import num_cores


class SharedModel:
    """Runs the batches of all front ends. Belongs to one event loop."""

    def __init__(
        self, opened: OpenedModel, options: ServeOptions, metrics: Metrics, on_health: OnHealth
    ) -> None:
        """`on_health` is called when the engine's `is_healthy` has changed."""
        self.engine = engine = Engine(
            opened, options, on_health, self._note_batch, self._publish, ranks=False
        )
        self.description, self.artifact_file = engine.description, engine.artifact.file
        self.num_workers = options.num_decode_threads or num_cores()
        self._segment, self._descriptor = Segment.create(
            self.description,
            self.artifact_file,
            engine.image_shape,
            num_streams=engine.batcher.num_streams,
            num_front_ends=options.num_front_ends + 1,  # the last is this process (OwnFrontEnd)
            max_queue=options.max_queue,
        )
        self._metrics = ModelMetrics(metrics, self.description.id, self._segment.sums)
        # It makes no promises itself, and answers for those of all front ends.
        promises = RemotePromises(self._segment, 0, Channel(lambda *_: None, lambda: None))
        self.admission = Admission(
            engine.batcher, promises, options.max_queue, lambda num_images: 0.0
        )
        self._requests: dict[int, RemoteRequests] = {}  # by front end
        self._is_tested = False

    @property
    def layout(self) -> Layout:
        """What a front end needs to read the memory."""
        return self._segment.layout

    async def start(self) -> None:
        """Pass the self-test at every certified batch size. Raises EngineError."""
        # In a thread, for page-locking takes long.
        await asyncio.to_thread(self.engine.register, self._segment.images)
        await self.engine.test()
        self._is_tested = True
        self._publish_times()

    async def join(self, number: int) -> tuple[int, socket.socket]:
        """Return the memory's descriptor, and the front end's end of its channel, to be closed.

        Another front end of this number, if there was one, has ended. Raises OSError where no file
        is left.
        """
        if before := self._requests.get(number):
            before.abandon()
        requests = RemoteRequests(self._segment, number, self.engine.batcher)
        theirs = await requests.open()
        self._requests[number] = requests
        return self._descriptor, theirs

    async def close(self) -> None:
        """Answer what front ends have submitted, until each has said that it was all; free."""
        self.engine.stop_trials()
        self.engine.batcher.hurry()
        for requests in self._requests.values():
            await requests.is_closed.wait()
        await self.admission.close()
        await asyncio.to_thread(self.engine.free)
        os.close(self._descriptor)

    def _note_batch(self, size: int, seconds: float) -> None:
        self._publish_times()
        if self._is_tested:
            self._metrics.observe_batch(size, seconds)

    def _publish_times(self) -> None:
        """Let the front ends know how long batches take."""
        self.engine.batcher.times.write(self._segment.predicted_s, self._segment.fastest_s)

    def _publish(self) -> None:
        """Let the front ends know when the engine will have ended what it runs."""
        batcher = self.engine.batcher
        self._segment.free_at[:] = batcher.free_at()
        self._segment.num_ending[0] = batcher.num_ending
