"""What a TensorRT engine's runner decides and calls, without a GPU."""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import NUM_CLASSES, SIDE, FakeContext, FakeCuda, FakeEngine, FakeTensorRT

from irv2.errors import EngineError
from irv2.manifest import Artifact
from irv2.runners.parallel import ParallelRunner
from irv2.runners.tensorrt import TensorRTRunner, choose_profile


@pytest.mark.parametrize(
    ("profiles", "num_images", "chosen"),
    [
        ([(1, 64)], 1, 0),
        ([(1, 12), (13, 48)], 12, 0),
        ([(1, 12), (13, 48)], 13, 1),
        ([(13, 48), (1, 12)], 12, 1),
        ([(1, 64), (16, 32)], 8, 0),  # the nearest largest batch, but its smallest is above
        ([(1, 64), (16, 32)], 16, 1),
        ([(1, 64), (16, 32)], 33, 0),
        ([(1, 8), (1, 8)], 8, 0),
    ],
)
def test_a_batch_is_run_by_the_profile_that_holds_it_and_ends_nearest(profiles, num_images, chosen):
    assert choose_profile(profiles, num_images) == chosen


@pytest.mark.parametrize("num_images", [0, 5, 65])
def test_a_batch_that_no_profile_holds_is_one_line(num_images):
    with pytest.raises(EngineError, match=f"engine: no profile holds a batch of {num_images}"):
        choose_profile([(1, 4), (6, 64)], num_images)


class Machine:
    """Fake GPUs of these names and an engine built for the first."""

    def __init__(self, monkeypatch, folder: Path, *names: str, flavour="tensorrt", **engine):
        self.cuda = FakeCuda(*names)
        self.trt = FakeTensorRT(self.cuda, **engine)
        monkeypatch.setattr("cuda.bindings.runtime", self.cuda)
        monkeypatch.setitem(sys.modules, flavour, self.trt)
        self.path = folder / "a.plan"
        self.path.write_bytes(b"a plan")
        built_for = f"{names[0]} (compute capability 9.0)" if flavour == "tensorrt" else "9.0"
        self.artifact = Artifact(
            file="a.plan",
            sha256="",
            format=flavour,
            precision="fp16",
            max_batch=7,
            built_from="",
            built_with={flavour: "11.4"},
            gpu=built_for,
            parity=None,
        )

    def open(self, gpu: int = 0) -> TensorRTRunner:
        runner = TensorRTRunner(self.path, self.artifact, gpu)
        self.trt.ran.clear()
        return runner


@pytest.fixture
def machine(monkeypatch, tmp_path):
    pytest.importorskip("cuda.bindings.runtime")
    return partial(Machine, monkeypatch, tmp_path)


def images(*numbers: int) -> np.ndarray:
    return np.stack([np.full((SIDE, SIDE, 3), number, np.uint8) for number in numbers])


def logits(*numbers: int) -> np.ndarray:
    return np.repeat(np.array(numbers, np.float32)[:, None], NUM_CLASSES, axis=1)


def test_the_fakes_know_nothing_that_the_real_libraries_lack():
    def public(fake):
        return {name for name in vars(fake) if not name.startswith("_")}

    runtime = pytest.importorskip("cuda.bindings.runtime")
    assert {name for name in public(FakeCuda) if name.startswith("cuda")} <= set(dir(runtime))
    rtx = pytest.importorskip("tensorrt_rtx")
    assert public(FakeContext) <= set(dir(rtx.IExecutionContext))
    assert public(FakeEngine) <= set(dir(rtx.ICudaEngine))
    assert public(FakeTensorRT) <= set(dir(rtx))


def test_batches_of_usual_sizes_are_graphs_and_those_between_are_padded(machine):
    here = machine("H100", profiles=((1, 8), (3, 5)))
    with here.open() as runner:
        assert here.cuda.num_graphs == 4
        for size in (7, 1, 5, 3, 2, 4, 6):  # also smaller after larger: nobody gets old answers
            numbers = range(size * 10, size * 11)
            np.testing.assert_array_equal(runner.run(images(*numbers)), logits(*numbers))
    padded = [batch for batch, _ in here.trt.ran]
    assert padded == [7, 1, 7, 4, 2, 4, 7]
    assert {profile for batch, profile in here.trt.ran if batch == 4} == {1}, "the graph's own"
    assert not here.cuda.memory
    assert here.cuda.num_graphs == 0


def test_an_engine_that_cannot_be_recorded_runs_as_it_is_and_one_line_says_so(machine, caplog):
    here = machine("H100", refuses=4)
    with here.open() as runner:
        for size in (1, 2, 3, 5, 7):
            numbers = range(size)
            np.testing.assert_array_equal(runner.run(images(*numbers)), logits(*numbers))
    assert [batch for batch, _ in here.trt.ran] == [1, 2, 3, 5, 7]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("no_cuda_graph batches_from=4 error=tensorrt: ")
    assert not here.cuda.memory


def test_tensorrt_rtx_is_left_to_its_own_graphs(machine):
    here = machine("RTX", flavour="tensorrt_rtx")
    with here.open() as runner:
        np.testing.assert_array_equal(runner.run(images(4, 5, 6)), logits(4, 5, 6))
    assert here.trt.ran == [(3, 0)]


def test_a_batch_is_copied_to_the_gpu_from_where_it_was_put_together(machine):
    here = machine("H100")
    with here.open() as runner:
        memory = runner.batch_memory(7)
        assert (memory.shape, memory.dtype) == ((7, SIDE, SIDE, 3), np.uint8)
        memory[:2] = images(8, 9)
        np.testing.assert_array_equal(runner.run(memory[:2]), logits(8, 9))
        assert memory.ctypes.data in here.cuda.copied_from
        assert memory.ctypes.data in here.cuda.memory, "page-locked"
        np.testing.assert_array_equal(runner.run(images(1, 2, 3)[::-1]), logits(3, 2, 1))
    assert not here.cuda.memory


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_gpus_fetch_images_from_where_each_lies_in_memory_that_was_registered(machine, num_gpus):
    here = machine(*["H100"] * num_gpus)
    lying = images(*range(20))
    with ParallelRunner([partial(here.open, gpu) for gpu in range(num_gpus)]) as runner:
        assert not runner.gathers
        runner.register(lying)
        assert runner.gathers
        assert here.cuda.registered == {lying.ctypes.data: lying.nbytes}
        for numbers in ([19], [3, 1], [7, 0, 12, 5, 2]):
            given = [lying[number] for number in numbers]
            np.testing.assert_array_equal(runner.run_gathered(given), logits(*numbers))
            assert {image.ctypes.data for image in given} <= here.cuda.copied_from
        np.testing.assert_array_equal(runner.run(images(1, 2)), logits(1, 2))
    assert not here.cuda.memory
    assert not here.cuda.registered


def test_two_gpus_share_a_batch(machine):
    here = machine("H100", "H100")
    with ParallelRunner([partial(here.open, gpu) for gpu in range(2)]) as runner:
        assert (runner.max_batch, runner.backend) == (14, "tensorrt")
        memory = runner.batch_memory(14)
        memory[:] = images(*range(14))
        np.testing.assert_array_equal(runner.run(memory), logits(*range(14)))
    assert [batch for batch, _ in here.trt.ran] == [7, 7]
    assert not here.cuda.memory


def test_an_engine_is_refused_on_a_gpu_that_it_was_not_built_for_and_on_one_that_is_not_there(
    machine,
):
    here = machine("H100", "L4")
    with pytest.raises(
        EngineError,
        match=r"a\.plan: was built for H100 \(compute capability 9\.0\); "
        r"GPU 1 is L4 \(compute capability 9\.0\); irv2 verify --rebuild",
    ):
        ParallelRunner([partial(here.open, gpu) for gpu in range(2)])
    assert not here.cuda.memory
    with pytest.raises(EngineError, match="CUDA: found 2 GPUs; expected at least 3"):
        here.open(gpu=2)
