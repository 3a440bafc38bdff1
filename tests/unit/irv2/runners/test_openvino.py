"""OpenVINO under our interface."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from tiny_bundle import tiny_model

from irv2.errors import EngineError
from irv2.runners import openvino
from irv2.runners.onnx import OnnxRunner
from irv2.runners.openvino import SIZES, OpenVinoRunner, import_openvino
from irv2.system.machine import cpu_has_bfloat16, num_cores

IMAGES = np.random.default_rng(0).integers(0, 256, (2 * SIZES[0] + 3, 75, 75, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(tiny_model(), path)
    return path


@pytest.fixture(scope="module")
def expected(model):
    return OnnxRunner(model).run(IMAGES)


@pytest.fixture(scope="module")
def fp32(model):
    return OpenVinoRunner(model, "fp32", num_threads=1)


@pytest.mark.parametrize("num", [1, 2, SIZES[0], SIZES[0] + 1, len(IMAGES)])
def test_any_number_of_images_gives_the_logits_of_the_model(fp32, expected, num):
    """In float32, which on AMX it would not compute in if left to itself."""
    assert (fp32.image_size, fp32.num_classes, fp32.num_threads) == (75, 10, 1)
    logits = fp32.run(IMAGES[:num])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected[:num], atol=1e-5 * np.abs(expected).max())


def test_an_answer_depends_on_neither_the_batch_nor_those_before_it(fp32):
    alone = np.concatenate([fp32.run(image[None]) for image in IMAGES])
    for num in (len(IMAGES), 1, 3, 2, 8):
        np.testing.assert_array_equal(fp32.run(IMAGES[:num]), alone[:num])
    np.testing.assert_array_equal(np.concatenate([fp32.run(i[None]) for i in IMAGES]), alone)


def test_a_runner_keeps_what_it_gave(fp32, expected):
    """OpenVINO answers in memory that it uses again."""
    first = fp32.run(IMAGES[:1])
    fp32.run(IMAGES[1:2])
    np.testing.assert_allclose(first, expected[:1], atol=1e-5 * np.abs(expected).max())


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="the processor has no bfloat16")
def test_bf16_is_less_exact_than_float32(model, fp32):
    logits = OpenVinoRunner(model, "bf16").run(IMAGES)
    difference = np.abs(logits - fp32.run(IMAGES)).max()
    assert 1e-5 < difference / np.abs(logits).max() < 0.05


@pytest.mark.skipif(cpu_has_bfloat16(), reason="the processor has bfloat16")
def test_bf16_is_refused_by_a_processor_that_would_compute_in_float32(model):
    with pytest.raises(EngineError, match=r"OpenVINO computes it in f32 here; expected bf16"):
        OpenVinoRunner(model, "bf16")


def test_streams_answer_calls_at_once_each_its_own(model, expected):
    runner = OpenVinoRunner(model, "fp32", num_threads=3, num_streams=3)
    assert runner.num_streams == 3
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda i: runner.run(IMAGES[i][None]), [*range(len(IMAGES))] * 9))
    close = {"atol": 1e-5 * np.abs(expected).max()}
    np.testing.assert_allclose(np.concatenate(answers), np.tile(expected, (9, 1)), **close)


def test_its_threads_are_as_many_as_cores_may_be_used(model):
    assert OpenVinoRunner(model, "fp32").num_threads == num_cores()


def test_a_batch_of_another_size_of_image_is_an_error_and_the_next_is_answered(fp32, expected):
    for _ in range(3):
        with pytest.raises(EngineError, match="OpenVINO"):
            fp32.run(np.zeros((1, 74, 75, 3), np.uint8))
    np.testing.assert_allclose(
        fp32.run(IMAGES[:1]), expected[:1], atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("content", [None, b"", b"no model"])
def test_a_file_that_is_no_model_is_one_error(tmp_path, content):
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"m\.onnx: OpenVINO can't load it") as caught:
        OpenVinoRunner(tmp_path / "m.onnx", "fp32")
    assert "\n" not in str(caught.value)


def test_without_it_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(EngineError, match=r"OpenVINO: can't be imported.*irv2\[openvino\]"):
        import_openvino()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of compiled models in an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("irv2.system.cache._is_told", False)  # as in a new process
    return tmp_path / "irv2" / "openvino"


@pytest.fixture
def compiled(monkeypatch, fp32):
    """The sizes that are compiled, in their order; a size that the cache holds is not."""
    sizes = []

    def compile_it(core, model, shape, properties):
        sizes.append(shape[0])
        return compile_model(core, model, shape, properties)

    compile_model = openvino._compile
    monkeypatch.setattr(openvino, "_compile", compile_it)
    return sizes


def from_cache(model, precision="fp32", **options):
    return OpenVinoRunner(model, precision, 1, use_cache=True, **options)


def test_what_was_compiled_is_kept_and_answers_alike_bit_for_bit(model, fp32, cache, compiled):
    first, again = from_cache(model), from_cache(model)
    assert compiled == [*SIZES]
    assert len(list(cache.iterdir())) == len(SIZES)
    for runner in (first, again):
        np.testing.assert_array_equal(runner.run(IMAGES), fp32.run(IMAGES))
    assert again.metadata == first.metadata == fp32.metadata
    assert (again.image_size, again.num_classes) == (75, 10)


@pytest.mark.skipif(not cpu_has_bfloat16(), reason="the processor has no bfloat16")
def test_a_precision_keeps_models_of_its_own(model, fp32, cache, compiled):
    """Left to itself, OpenVINO would read either as bfloat16."""
    from_cache(model), from_cache(model, "bf16")
    assert compiled == [*SIZES, *SIZES]
    np.testing.assert_array_equal(from_cache(model).run(IMAGES), fp32.run(IMAGES))
    difference = np.abs(from_cache(model, "bf16").run(IMAGES) - fp32.run(IMAGES)).max()
    assert difference > 1e-5
    assert compiled == [*SIZES, *SIZES]


def test_another_file_processor_or_division_of_threads_is_compiled(
    model, cache, compiled, tmp_path, monkeypatch
):
    from_cache(model)
    from_cache(model, num_streams=2)
    other = tmp_path / "other.onnx"
    changed = onnx.load(model)
    onnx.helper.set_model_props(changed, {"checkpoint": "another"})
    onnx.save(changed, other)
    from_cache(other)
    monkeypatch.setattr(openvino, "cpu_flags", lambda: {"avx2"})
    from_cache(model)
    assert compiled == [*SIZES] * 4


def test_no_entry_of_the_cache_can_change_an_answer(model, fp32, cache, compiled, caplog):
    """OpenVINO itself takes a spoilt model and answers otherwise."""
    from_cache(model)
    paths = sorted(cache.iterdir())
    whole = {path: path.read_bytes() for path in paths}
    foreign = dict(zip(paths, reversed(whole.values()), strict=True))
    spoilt = {
        "flipped": {path: _flipped(content) for path, content in whole.items()},
        "cut": {path: content[: len(content) // 2] for path, content in whole.items()},
        "of the other size": foreign,
    }
    for damage, contents in spoilt.items():
        compiled.clear()
        for path, content in contents.items():
            path.write_bytes(content)
        np.testing.assert_array_equal(from_cache(model).run(IMAGES), fp32.run(IMAGES), damage)
        assert compiled == [*SIZES], damage
        from_cache(model)
        assert compiled == [*SIZES], damage
    assert "unreadable openvino, made again" in caplog.text


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :]


def test_what_openvino_can_not_read_is_compiled(model, fp32, cache, compiled, monkeypatch):
    """As of a build of the same version that writes other files."""
    with monkeypatch.context() as patched:
        patched.setattr(openvino, "_exported", lambda compiled: b"of another build")
        from_cache(model)
    np.testing.assert_array_equal(from_cache(model).run(IMAGES), fp32.run(IMAGES))
    assert compiled == [*SIZES, *SIZES]
    from_cache(model)
    assert compiled == [*SIZES, *SIZES]


def test_without_a_cache_the_start_goes_on_and_one_line_says_so(model, fp32, cache, caplog):
    cache.parent.mkdir()
    cache.write_text("a file where the folder would be")
    for _ in range(2):
        np.testing.assert_array_equal(from_cache(model).run(IMAGES), fp32.run(IMAGES))
    [notice] = caplog.messages
    assert "compiled models and a checkpoint's answers are not kept" in notice


def test_the_oldest_models_go_where_there_are_too_many(model, cache, monkeypatch):
    from_cache(model)
    size_bytes = max(path.stat().st_size for path in cache.iterdir())
    monkeypatch.setattr(openvino, "MAX_CACHE_BYTES", 3 * size_bytes)
    from_cache(model, num_streams=2)
    assert len(list(cache.iterdir())) == 3


@pytest.mark.slow
def test_the_first_calls_of_a_process_may_come_at_once(model):
    """Its bindings would wait for each other: seen twice on a busy machine."""
    code = """
import sys, threading
import numpy as np
from pathlib import Path
from irv2.runners.openvino import OpenVinoRunner
sys.setswitchinterval(1e-6)
runners = [OpenVinoRunner(Path(sys.argv[1]), "fp32", 2, 2) for _ in range(2)]
image = np.zeros((1, 75, 75, 3), np.uint8)
start = threading.Barrier(4)
def ask(runner):
    start.wait()
    runner.run(image)
threads = [threading.Thread(target=ask, args=(each,)) for each in runners * 2]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, str(model)], check=True, timeout=60)


def test_a_signal_after_models_were_closed_is_handled(model):
    """It ended the process on AMX: its handler had got a stack that was freed."""
    code = """
import signal, sys
from pathlib import Path
from irv2.runners.openvino import OpenVinoRunner
runners = [OpenVinoRunner(Path(sys.argv[1]), "fp32", 1) for _ in range(2)]
while runners:
    del runners[0]
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
signal.raise_signal(signal.SIGTERM)
"""
    command = [sys.executable, "-c", code, str(model)]
    assert subprocess.run(command, check=True, capture_output=True).stdout == b"handled\n"


def test_its_import_reports_nothing_and_leaves_nothing_in_the_home(tmp_path):
    """By itself it starts a thread that tells Google Analytics, but not where CI is set."""
    code = """
import sys, threading
from irv2.runners.openvino import import_openvino
import_openvino().Core()
assert "openvino_telemetry" not in sys.modules
assert threading.active_count() == 1, threading.enumerate()
"""
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**environment, "HOME": str(tmp_path)}
    )
    assert list(tmp_path.iterdir()) == []
