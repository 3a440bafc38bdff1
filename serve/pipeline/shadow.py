"""A second model on a share of the pictures, run while nobody waits for the first.

Nothing of it is on a request's way: an answered picture is copied and waits, or is dropped. The
shadow runs one picture at a time, when nothing is admitted and the latest requests would all have
borne the delay.
"""

import asyncio
import hashlib
import json
import logging
import math
import random
from collections import deque
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from irv2.errors import UsageError
from irv2.images.preprocess import Preprocess
from irv2.measures.agreement import Agreement
from irv2.measures.shadow import ShadowReport, State
from irv2.serve.options import ServeOptions, ShadowOptions
from irv2.serve.pipeline.admission import Admission
from irv2.serve.pipeline.engine import Engine, open_model
from irv2.serve.pipeline.request import Pipeline
from irv2.types import UInt8Array
from irv2.v1 import classifier_pb2

logger = logging.getLogger(__name__)

MAX_WAITING = 32  # pictures: 9 MB of crops of 299 pixels
NUM_RECENT = 1024  # pictures whose time to spare must be enough for a run of the shadow
# A run may take so many times as long as the fastest, as a request that comes in its middle shares
# the cores. No average: a slow run could stop all others, and would then be believed for ever.
SLOWER = 2.0
MAX_REMEMBERED = 65536  # pictures that are not counted again, by their hashes: 8 MB


class Followed(Protocol):
    """The served model, as its shadow sees it."""

    description: classifier_pb2.Model
    engine: Engine
    admission: Admission
    pipeline: Pipeline


class Pair:
    """What was counted of a served model and its shadow, since the served one took over."""

    def __init__(self, model_id: str, next_look: int | None) -> None:
        """The verdict is asked for at `next_look` pictures; None: never."""
        self.model_id, self.next_look = model_id, next_look
        self.num_compared = self.num_changed = self.num_repeated = self.num_dropped = 0
        self._remembered: dict[bytes, None] = {}  # the oldest first

    @property
    def agreement(self) -> Agreement:
        """How often they agreed."""
        return Agreement(self.num_compared, self.num_changed)

    def is_new(self, image: UInt8Array) -> bool:
        """Whether this picture is seen for the first time; it is remembered.

        As in the gate, a picture counts once: a probe that sends the same one each second is no
        evidence.
        """
        digest = hashlib.blake2b(image.data, digest_size=8).digest()
        if digest in self._remembered:
            return False
        self._remembered[digest] = None
        if len(self._remembered) > MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        return True


class _Picture(NamedTuple):
    pair: Pair
    image: UInt8Array
    best: int  # class of the served model


class Shadow:
    """Compares its own answers with those of the served model. Belongs to one event loop."""

    def __init__(self, engine: Engine, preprocess: Preprocess, options: ShadowOptions) -> None:
        """`engine` has one stream."""
        self._engine, self._preprocess, self._options = engine, preprocess, options
        self.description, self._artifact_file = engine.description, engine.artifact.file
        self.state: State = "comparing"
        self._model: Followed | None = None
        self._pair = Pair("", None)
        self._random = random.Random(0)
        self._waiting: asyncio.Queue[_Picture] = asyncio.Queue(MAX_WAITING)
        self._left_s: deque[float] = deque(maxlen=NUM_RECENT)  # to the deadlines, at the answers

    def follow(self, model: Followed) -> None:
        """Count anew, of this model, from now on. Raises UsageError if it can't be compared."""
        served, shadow = model.description, self.description
        what = f"--shadow {self._options.bundle}"
        if served.classes != shadow.classes:
            got, expected = "has other classes", "those of the served bundle, in the same order"
            raise UsageError(what, got, expected)
        sha256 = Preprocess.from_json(json.loads(served.preprocess_json), "served bundle").sha256
        if self._preprocess.sha256 != sha256:
            got = f"is for preprocessing {self._preprocess.sha256[:12]}"
            expected = f"{sha256[:12]}, the served bundle's"
            raise UsageError(what, got, expected, "a picture is prepared once, for both models")
        self._model, self._pair = model, Pair(served.id, self._options.promote_after)
        model.pipeline.on_answer = partial(self._offer, self._pair)

    async def run(self) -> bool:
        """Compare pictures until the shadow may be promoted: True; or has failed: False."""
        try:
            while not await self._compare_next():
                pass
        except Exception as error:  # an engine's library may raise anything; the server goes on
            logger.error("shadow_failed shadow=%s error=%s", self.description.id[:12], error)
            self.state = "off"
            return False
        self.state = "promoting"
        return True

    async def close(self) -> None:
        """Take no more pictures and free the engine; the counts stay."""
        if self._model:
            self._model.pipeline.on_answer = None
        self._model = None
        self._waiting = asyncio.Queue(MAX_WAITING)
        engine = self._engine
        del self._engine  # so that its memory is freed
        try:
            await engine.batcher.close()
            await asyncio.to_thread(engine.free)
        except Exception:  # an engine's library may raise anything; the server goes on
            logger.exception("close_failed shadow=%s", self.description.id[:12])

    @property
    def report(self) -> ShadowReport:
        """What was counted so far."""
        pair = self._pair
        return ShadowReport(
            model_id=pair.model_id,
            shadow_id=self.description.id,
            artifact=self._artifact_file,
            precision=self.description.precision,
            backend=self.description.backend,
            state=self.state,
            compared=pair.num_compared,
            changed=pair.num_changed,
            repeated=pair.num_repeated,
            dropped=pair.num_dropped,
            limit_percent=self._options.max_disagreement_points,
        )

    def _offer(self, pair: Pair, image: UInt8Array, best: int, left_s: float) -> None:
        """Take a share of the pictures that were answered, as far as there is room.

        The copy holds none of the memory of a whole request.
        """
        self._left_s.append(left_s)
        if self._random.random() * 100 >= self._options.share_percent:
            return
        try:
            self._waiting.put_nowait(_Picture(pair, np.array(image, order="C"), best))
        except (asyncio.QueueFull, MemoryError):  # neither is the request's business
            pair.num_dropped += 1

    async def _compare_next(self) -> bool:
        """Compare a picture when nothing else is to be done; whether that earns the promotion."""
        pair, image, best = await self._waiting.get()
        assert self._model
        await self._model.admission.idle()
        if pair is not self._pair:
            return False  # another model serves by now
        if not self._is_bearable():
            pair.num_dropped += 1
            return False
        if not pair.is_new(image):
            pair.num_repeated += 1
            return False
        [logits] = await self._engine.batcher.run_apart(image[None])
        pair.num_compared += 1
        pair.num_changed += int(logits[0].argmax()) != best
        return pair is self._pair and self._earns_promotion(pair)

    def _is_bearable(self) -> bool:
        """Whether a request that came now would be in time all the same.

        It would wait for one run at most, and is expected to have as much time to spare as the
        latest ones.
        """
        assert self._model
        takes_s = self._engine.batcher.times.fastest(1) * SLOWER
        nothing_runs = not self._model.engine.batcher.num_running  # nor what was given up
        return nothing_runs and takes_s <= min(self._left_s, default=math.inf)

    def _earns_promotion(self, pair: Pair) -> bool:
        """Look at the verdict when it is time, and again at twice as many pictures.

        Looking after every picture, one of many looks would find a lucky moment.
        """
        if pair.next_look is None or pair.num_compared < pair.next_look:
            return False
        limit = self._options.max_disagreement_points
        verdict = pair.agreement.verdict(limit)
        pair.next_look = 2 * pair.num_compared if verdict == "too_few_images" else None
        next_look = f"; looks again at {pair.next_look}" if pair.next_look else ""
        logger.info(
            "shadow_judged shadow=%s %s%s",
            *(self.description.id[:12], pair.agreement.finding(limit), next_look),
        )
        return verdict == "passed"


async def open_shadow(options: ServeOptions, model: Followed) -> Shadow:
    """Open and test the second bundle, which then follows `model`. Raises Irv2Error.

    What the options ask of the served bundle holds for it too, its signature among them.
    """
    assert options.shadow
    one_by_one = replace(options, num_streams=1, num_gpus=1, max_batch=1, max_queue_delay_ms=0.0)
    opened = await asyncio.to_thread(open_model, options.shadow.bundle, one_by_one)
    try:
        engine = Engine(opened, one_by_one, _ignore_health, lambda size, seconds: None)
    except BaseException:
        await asyncio.to_thread(opened.choice.runner.close)
        raise
    shadow = Shadow(engine, opened.bundle.preprocess, options.shadow)
    try:
        shadow.follow(model)
        await engine.test()
    except BaseException:
        await shadow.close()
        raise
    return shadow


async def _ignore_health() -> None:
    """Do nothing: the first failure ends the shadow."""
