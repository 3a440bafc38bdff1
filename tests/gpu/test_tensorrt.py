"""Engines of `tensorrt` on a real GPU: built, judged, chosen, and right at every batch size."""

import os
import shutil
import time
from pathlib import Path

import msgspec
import numpy as np
import pytest
from serving_process import serving
from tiny_checkpoint import CLASSES

from irv2.bundle import Bundle
from irv2.client import Client
from irv2.convert.engine.build import build_engine, choose_flavour, engine_artifact
from irv2.convert.engine.options import EngineOptions
from irv2.convert.rebuild import rebuild
from irv2.convert.verify import verify
from irv2.convert.verify_server import verify_server
from irv2.errors import EngineError
from irv2.manifest import REPORT, Artifact
from irv2.runners.choose import open_best, open_runner
from irv2.runners.onnx import OnnxRunner
from irv2.runners.tensorrt import TensorRTRunner
from irv2.serve.front_ends.segment import Segment
from irv2.system.gpu import call, count_gpus, find_gpu, import_cuda
from irv2.v1 import classifier_pb2

pytestmark = pytest.mark.timeout(1800)  # the first test waits for the engines

IMAGES = np.random.default_rng(0).integers(0, 256, (16, 75, 75, 3), dtype=np.uint8)


def artifact_of(bundle: Path, file: str) -> Artifact:
    [found] = [a for a in Bundle.open(bundle).manifest.artifacts if a.file == file]
    return found


def open_plan(bundle: Path, precision: str) -> TensorRTRunner:
    artifact = artifact_of(bundle, f"model.{precision}.plan")
    runner = open_runner(bundle / artifact.file, artifact, artifact.format)
    assert isinstance(runner, TensorRTRunner)
    return runner


def assert_float32(logits: np.ndarray, expected: np.ndarray) -> None:
    """Without TF32, summed in another order."""
    assert (logits.shape, logits.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.fixture(scope="module")
def expected(bundle: Path) -> np.ndarray:
    """The float32 model's logits on the CPU."""
    with OnnxRunner(bundle / "model.onnx") as runner:
        return runner.run(IMAGES)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_an_engine_of_every_precision_passes_at_every_edge_of_its_profiles(bundle, precision):
    plan = artifact_of(bundle, f"model.{precision}.plan")
    assert (plan.format, plan.gpu) == ("tensorrt", str(find_gpu()))
    assert (plan.parity.verdict, plan.parity.ran_on) == ("passed", "tensorrt")
    assert str(find_gpu()) in plan.parity.machine
    assert plan.invariance.batch_sizes == [*range(1, 10), 12, 13, 15, 16]
    assert plan.invariance.changed == 0


def test_the_inspectors_summary_is_in_the_report(bundle):
    summary = artifact_of(bundle, "model.fp32.plan").built_with["layers"]
    assert summary.split()[0].isdecimal()
    assert f"layers {summary}, device_memory_mb " in (bundle / REPORT).read_text()


def test_the_fastest_engine_is_chosen(bundle):
    artifact, _, runner, _ = open_best(bundle, Bundle.open(bundle).artifacts)
    with runner:
        assert (artifact.file, runner.backend) == ("model.int8.plan", "tensorrt")


def test_logits_are_the_onnx_models_whatever_profile_and_batch_came_before(bundle, expected):
    with open_plan(bundle, "fp32") as runner:
        assert runner._profiles == [(1, 16), (6, 12)]
        for num in (16, 1, 5, 6, 12, 13, 7, 16):  # also smaller after larger: no old rows
            assert_float32(runner.run(IMAGES[:num]), expected[:num])
            assert_float32(by_the_plain_path(runner, IMAGES[:num]), expected[:num])
            profile = 1 if 6 <= num <= 12 else 0
            assert runner._context.active_optimization_profile == profile


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(version_compatible=True),
        EngineOptions(hardware_compatibility="ampere+"),
        EngineOptions(hardware_compatibility="same-compute-capability"),
        EngineOptions(workspace_mb=64),
    ],
)
def test_an_engine_with_other_options_is_built_loaded_and_right(
    bundle, expected, tmp_path, options
):
    shutil.copy(bundle / "model.onnx", tmp_path)
    onnx_model = artifact_of(bundle, "model.onnx")
    plan = engine_artifact(onnx_model, tmp_path, choose_flavour(options), options)
    assert plan.built_with["layers"]
    with TensorRTRunner(tmp_path / plan.file, plan) as runner:
        assert_float32(runner.run(IMAGES), expected)


def test_a_second_build_finds_everything_in_the_timing_cache(bundle, tmp_path):
    options = EngineOptions(timing_cache=tmp_path / "cache")
    seconds, cache_bytes = [], []
    for _ in range(2):
        started = time.perf_counter()
        build_engine(bundle / "model.fp16.onnx", tmp_path / "a.plan", 8, choose_flavour(), options)
        seconds.append(time.perf_counter() - started)
        cache_bytes.append((tmp_path / "cache").stat().st_size)
    assert cache_bytes[0] == cache_bytes[1] > 0
    assert seconds[1] < seconds[0]


def test_verify_judges_every_engine_again(bundle, data, tmp_path):
    copy = shutil.copytree(bundle, tmp_path / "copy.bundle")
    report = verify(copy, data)
    engines = [a.parity for a in report.manifest.artifacts if a.format == "tensorrt"]
    assert [parity.verdict for parity in engines] == ["passed"] * 4


def test_rebuild_makes_engines_of_another_gpu_anew_as_they_were(bundle, data, tmp_path):
    path = shutil.copytree(bundle, tmp_path / "old.bundle")
    opened = Bundle.open(path)
    strange = [
        msgspec.structs.replace(artifact, gpu="another") if artifact.gpu else artifact
        for artifact in opened.manifest.artifacts
    ]
    opened.with_manifest(msgspec.structs.replace(opened.manifest, artifacts=strange))
    with pytest.raises(EngineError, match="was built for another; here is"):
        open_plan(path, "fp32")
    report = rebuild(path, data)
    assert not report.failed, report.to_table()
    plan = artifact_of(path, "model.fp16.plan")
    assert (plan.gpu, plan.parity.verdict) == (str(find_gpu()), "passed")
    assert plan.built_with["profiles"] == "1:4:16, 6:8:12"


def test_a_server_with_the_engine_answers_as_the_checkpoint_and_its_onnx_file_do(bundle, data):
    with (
        serving(bundle, "--backend", "tensorrt", "--precision", "fp32") as server,
        Client(server.address) as client,
    ):
        report = verify_server(bundle, client, data)
    assert report.artefact == "model.fp32.plan"
    assert report.num_checkpoint_top1 == report.n == 8 * len(CLASSES)


def by_the_plain_path(runner: TensorRTRunner, images: np.ndarray) -> np.ndarray:
    recorded, runner._recorded = runner._recorded, {}
    try:
        return runner.run(images)
    finally:
        runner._recorded = recorded


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_graph_gives_what_the_plain_launch_gives_bit_for_bit(bundle, precision):
    with open_plan(bundle, precision) as runner:
        assert list(runner._recorded) == [1, 2, 4, 8, 16], "nothing was refused"
        for size in (16, 1, 8, 2, 4, 16):  # also smaller after larger, and twice
            plain = by_the_plain_path(runner, IMAGES[:size])
            np.testing.assert_array_equal(runner.run(IMAGES[:size]), plain)


def test_a_batch_between_the_usual_sizes_is_the_first_part_of_the_next_one(bundle):
    with open_plan(bundle, "fp16") as runner:
        for size in (3, 5, 6, 7, 9, 13, 15):
            padded = by_the_plain_path(runner, IMAGES[: 1 << (size - 1).bit_length()])
            np.testing.assert_array_equal(runner.run(IMAGES[:size]), padded[:size])


def test_what_lies_in_a_batchs_own_memory_gets_the_same_logits(bundle):
    with open_plan(bundle, "fp16") as runner:
        expected = runner.run(IMAGES)
        memory = runner.batch_memory(len(IMAGES))
        memory[:] = IMAGES
        np.testing.assert_array_equal(runner.run(memory), expected)


def test_images_are_fetched_from_where_each_lies_in_memory_that_front_ends_share(bundle):
    model = classifier_pb2.Model(classes=CLASSES, max_batch=len(IMAGES))
    segment, descriptor = Segment.create(
        model, "x.plan", IMAGES.shape[1:], num_streams=1, num_front_ends=2, max_queue=32
    )
    os.close(descriptor)
    lying = [segment.images[i % 2, 3 * i] for i in range(len(IMAGES))]
    for place, image in zip(lying, IMAGES, strict=True):
        place[:] = image
    for _ in range(2):  # it can be registered again once it was let go
        with open_plan(bundle, "fp16") as runner:
            expected = runner.run(IMAGES)
            runner.register(segment.images)
            for size in (1, 2, 3, 16):
                np.testing.assert_array_equal(runner.run_gathered(lying[:size]), expected[:size])


def test_an_engine_that_was_closed_gives_its_memory_back(bundle):
    cuda = import_cuda()
    open_plan(bundle, "fp16").close()  # loads what stays
    free_bytes = call(cuda.cudaMemGetInfo)
    for _ in range(3):
        with open_plan(bundle, "fp16") as runner:
            runner.run(IMAGES)
    assert free_bytes - call(cuda.cudaMemGetInfo) < 16 * 2**20


def test_two_gpus_share_a_batch_and_give_what_each_gives_alone(bundle):
    if (found := count_gpus()) < 2:
        pytest.skip(f"{found} GPU; expected 2 or more")
    opened, artifact = Bundle.open(bundle), artifact_of(bundle, "model.fp16.plan")
    images = np.concatenate([IMAGES, IMAGES[::-1]])
    with (
        open_plan(bundle, "fp16") as one,
        open_runner(opened.path / artifact.file, artifact, artifact.format, num_gpus=2) as both,
    ):
        assert both.max_batch == 2 * one.max_batch
        memory = both.batch_memory(len(images))
        memory[:] = images
        expected = np.concatenate([one.run(IMAGES), one.run(IMAGES[::-1])])
        np.testing.assert_array_equal(both.run(memory), expected)
        np.testing.assert_array_equal(both.run(images[:1]), one.run(images[:1]))
