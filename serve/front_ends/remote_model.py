"""One model that serves, in a front end: its decoder and pipeline, before an engine elsewhere."""

import asyncio
import json
import os
import socket
from math import ceil

from irv2.images.decode import ImageLimits
from irv2.images.preprocess import Preprocess
from irv2.serve.front_ends.channel import Channel
from irv2.serve.front_ends.remote_batcher import RemoteBatcher, RemotePromises
from irv2.serve.front_ends.segment import Layout, Segment
from irv2.serve.operations.metrics import Metrics, ModelMetrics, Statistics
from irv2.serve.options import ServeOptions
from irv2.serve.pipeline.admission import Admission
from irv2.serve.pipeline.decode_pool import Decoder
from irv2.serve.pipeline.request import Pipeline
from irv2.system.machine import num_cores


class RemoteModel:
    """Answers requests once `start` has returned. Belongs to one event loop."""

    def __init__(
        self,
        layout: Layout,
        descriptors: list[int],
        options: ServeOptions,
        metrics: Metrics,
        number: int,
    ) -> None:
        """Take the descriptors of the memory and of the channel; the front end has this number."""
        memory, channel = descriptors
        segment = Segment(layout, memory)
        os.close(memory)
        self._end = socket.socket(fileno=channel)
        self._channel = Channel(lambda *record: self._promises.receive(*record), self._note_lost)
        self._is_closing = False
        self.description, self.artifact_file = segment.description, layout.artifact_file
        self.image_shape = layout.image_shape
        self._metrics = ModelMetrics(metrics, self.description.id, segment.sums, number)
        preprocess = Preprocess.from_json(
            json.loads(self.description.preprocess_json), self.artifact_file
        )
        limits = ImageLimits(max_bytes=options.max_image_bytes, max_pixels=options.max_image_pixels)
        num_threads = ceil((options.num_decode_threads or num_cores()) / options.num_front_ends)
        self._decoder = Decoder(preprocess, limits, num_threads)
        batcher = RemoteBatcher(segment, self._channel)
        self._promises = RemotePromises(segment, number, self._channel)
        self._admission = Admission(
            batcher, self._promises, options.max_queue, self._decoder.predict
        )
        self.pipeline = Pipeline(
            self.description, options.limits, self._decoder, self._admission, self._metrics
        )

    @property
    def statistics(self) -> Statistics:
        """What the model has done since it took over, in all front ends."""
        return self._metrics.statistics

    async def open(self) -> None:
        """Open the channel to the engine."""
        await self._channel.open(self._end)

    async def start(self) -> None:
        """Decode once, so that no client's image is the first, and serve."""
        await self.pipeline.warm_up_decoder()
        self.pipeline.is_serving = True

    async def close(self) -> None:
        """Answer what was admitted, then say so to the engine's process."""
        self._is_closing = True
        await self._admission.close()
        await asyncio.to_thread(self._decoder.close)

    def _note_lost(self) -> None:
        if not self._is_closing:
            os._exit(1)  # a front end without an engine answers nobody
