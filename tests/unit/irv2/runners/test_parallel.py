"""Several real engines on the CPU that share each batch."""

import threading
import time
from functools import partial

import numpy as np
import pytest
from tiny_bundle import SIDE

from irv2.bundle import Bundle
from irv2.errors import BundleError, EngineError
from irv2.runners.choose import open_best, open_runner
from irv2.runners.onnx import OnnxRunner
from irv2.runners.parallel import ParallelRunner

MAX_BATCH = 3  # of one engine
IMAGES = np.random.default_rng(0).integers(0, 256, (3 * MAX_BATCH, SIDE, SIDE, 3), np.uint8)


class Engine(OnnxRunner):
    """A real one that tells what happened to it, and fails where it is told to."""

    def __init__(self, path, error: str = "", error_at_close: str = "") -> None:
        super().__init__(path, "cpu", 1, MAX_BATCH)
        self.sizes, self.threads = [], {threading.current_thread().name}
        self.error, self.error_at_close, self.is_closed = error, error_at_close, False

    def run(self, images):
        self.sizes.append(len(images))
        self.threads.add(threading.current_thread().name)
        if self.error:
            raise EngineError("engine", self.error)
        return super().run(images)

    def close(self):
        self.threads.add(threading.current_thread().name)
        self.is_closed = True
        if self.error_at_close:
            raise EngineError("engine", self.error_at_close)


class Three:
    """A runner over three engines; `changes` are the second one's."""

    def __init__(self, bundle: Bundle, **changes) -> None:
        self.engines: dict[int, Engine] = {}
        self.runner = ParallelRunner(
            [partial(self._open, bundle, i, changes if i == 1 else {}) for i in range(3)]
        )

    def _open(self, bundle, i, changes) -> Engine:
        self.engines[i] = Engine(bundle.path / "model.onnx", **changes)
        return self.engines[i]


def test_every_batch_gets_the_logits_of_one_engine_in_order(bundle):
    with OnnxRunner(bundle.path / "model.onnx", num_threads=1) as one, Three(bundle).runner as all_:
        assert (all_.max_batch, all_.num_engines) == (9, 3)
        assert (all_.backend, all_.image_size) == (one.backend, one.image_size)
        assert (all_.num_classes, all_.metadata) == (one.num_classes, one.metadata)
        for size in range(1, 10):
            np.testing.assert_array_equal(all_.run(IMAGES[:size]), one.run(IMAGES[:size]))


def test_batches_are_split_evenly_and_no_engine_gets_more_than_was_certified_for_it(bundle):
    three = Three(bundle)
    with three.runner:
        for size in (1, 2, 3, 4, 8, 9):
            three.runner.run(IMAGES[:size])
    sizes = [three.engines[i].sizes for i in range(3)]
    assert sizes == [[1, 1, 1, 2, 3, 3], [1, 1, 1, 3, 3], [1, 1, 2, 3]]


def test_each_engine_is_opened_run_and_closed_in_its_own_thread(bundle):
    three = Three(bundle)
    with three.runner:
        three.runner.run(IMAGES)
    threads = [three.engines[i].threads for i in range(3)]
    assert all(len(names) == 1 for names in threads)
    assert len(set.union(*threads)) == 3
    assert not any(thread.name in set.union(*threads) for thread in threading.enumerate())


def test_engines_run_at_the_same_time(bundle):
    everybody = threading.Barrier(3, timeout=10)

    class Meeting(Engine):
        def run(self, images):
            everybody.wait()  # broken, and raises, unless all three come
            return super().run(images)

    with ParallelRunner([partial(Meeting, bundle.path / "model.onnx")] * 3) as runner:
        assert len(runner.run(IMAGES)) == len(IMAGES)


def test_an_error_of_one_engine_is_the_batchs_once_all_have_ended(bundle):
    three = Three(bundle, error="the device is lost")
    finished = []

    def slowly(images, run):
        time.sleep(0.1)
        finished.append(run(images))

    three.engines[2].run = partial(slowly, run=three.engines[2].run)
    with three.runner:
        with pytest.raises(EngineError, match="the device is lost"):
            three.runner.run(IMAGES)
        assert finished, "an engine still read the batch"
        assert len(three.runner.run(IMAGES[:1])) == 1, "on the first engine alone"


def test_where_one_cannot_be_opened_the_others_are_closed(bundle):
    opened = []

    def opens():
        opened.append(Engine(bundle.path / "model.onnx"))
        return opened[-1]

    def fails():
        raise EngineError("CUDA", "out of memory")

    with pytest.raises(EngineError, match="out of memory"):
        ParallelRunner([opens, fails, opens])
    assert [engine.is_closed for engine in opened] == [True, True]


def test_all_are_closed_even_if_one_raises(bundle):
    three = Three(bundle, error_at_close="can't be freed")
    with pytest.raises(EngineError, match="can't be freed"):
        three.runner.close()
    assert all(engine.is_closed for engine in three.engines.values())


def test_several_gpus_are_one_runner_and_no_cpu_stands_in_for_them(bundle):
    [artifact] = bundle.manifest.artifacts
    with open_runner(
        bundle.path / artifact.file, artifact, "onnxruntime-cpu", num_threads=1, num_gpus=2
    ) as runner:
        assert isinstance(runner, ParallelRunner)
        assert runner.max_batch == 2 * artifact.max_batch
    with pytest.raises(BundleError, match=r"\(onnxruntime-cpu\): is for a CPU, asked for 2 GPUs"):
        open_best(bundle.path, bundle.artifacts, num_gpus=2)
