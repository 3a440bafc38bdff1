"""TensorRT engines on a machine without a GPU: built for real, never run, never guessed about."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from tiny_checkpoint import Exported, tree

from convert.engine import RTX_CAPABILITIES, Flavour, build_engine, choose_flavour
from convert.rebuild import rebuild
from convert.report import REPORT
from irv2.bundle import (
    MANIFEST,
    Artifact,
    Bundle,
    bundle_id,
    manifest_json,
    read_manifest,
)
from irv2.errors import BundleError, EngineError
from irv2.runners.choose import open_best, open_runner
from irv2.runners.cuda import Gpu, find_gpu
from irv2.runners.tensorrt import check_gpu, check_version

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def gpu_here() -> bool:
    try:
        find_gpu()
    except EngineError:
        return False
    return True


needs_no_gpu = pytest.mark.skipif(gpu_here(), reason="there is a GPU: tests/gpu covers it")


@pytest.fixture(scope="module")
def flavour() -> Flavour:
    return choose_flavour()


@pytest.fixture(scope="module")
def with_plan(
    exported: Exported, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A bundle with an engine, made by the program."""
    out = tmp_path_factory.mktemp("engine") / "trt.bundle"
    command = [sys.executable, "-m", "irv2", "export", str(exported.checkpoint_path), "--trt",
               "--precision", "fp32", "--data", str(exported.data), "--out", str(out)]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return out, result


def plan_of(bundle: Bundle) -> Artifact:
    [plan] = [a for a in bundle.manifest.artifacts if a.file == "model.fp32.plan"]
    return plan


@needs_rtx
@needs_no_gpu
def test_engine_is_built_without_a_gpu_and_published_unverified(with_plan):
    path, result = with_plan
    bundle = Bundle.open(path)
    plan = plan_of(bundle)
    assert (path / plan.file).stat().st_size > 1_000_000  # holds the weights
    assert (plan.format, plan.precision, plan.max_batch) == ("tensorrt_rtx", "fp32", 64)
    assert plan.parity is None
    assert plan.built_from == bundle.manifest.artifacts[0].sha256
    assert plan.built_with["tensorrt_rtx"]
    assert plan.gpu == "RTX GPU of compute capability 8.0, 8.6, 8.9, 12.0"
    assert "model.fp32.plan: not verified here: CUDA: no usable GPU" in result.stdout
    assert "not verified here" in (path / REPORT).read_text()


@needs_rtx
@needs_no_gpu
def test_an_unverified_engine_is_not_chosen(with_plan):
    bundle = Bundle.open(with_plan[0])
    with open_best(bundle)[1] as runner:
        assert runner.backend == "onnxruntime-cpu"
    with pytest.raises(BundleError, match=r"model\.fp32\.plan \(cuda\): not verified"):
        open_best(bundle, backend="tensorrt_rtx")


@needs_rtx
@needs_no_gpu
def test_opening_an_engine_without_a_gpu_is_one_clear_line(with_plan):
    bundle = Bundle.open(with_plan[0])
    with pytest.raises(EngineError, match=r"CUDA: no usable GPU .*; expected an NVIDIA GPU"):
        open_runner(bundle, plan_of(bundle), "cuda")


@needs_rtx
@needs_no_gpu
def test_verify_keeps_what_it_cannot_run_and_says_why(with_plan, exported):
    path, _ = with_plan
    models = {name: sha for name, sha in tree(path).items() if name.startswith("model")}
    command = [sys.executable, "-m", "irv2", "verify", str(path), "--data", str(exported.data),
               "--json"]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    onnx, plan = json.loads(result.stdout)["artifacts"]
    assert onnx["parity"]["verdict"] == "passed"
    assert plan["parity"] is None
    assert plan["line"].startswith("not verified here: CUDA: no usable GPU")
    assert plan_of(Bundle.open(path)).parity is None
    assert models.items() <= tree(path).items()


@needs_rtx
@needs_no_gpu
def test_rebuild_makes_a_strange_engine_anew_and_judges_the_bundle(with_plan, exported, tmp_path):
    path = tmp_path / "old.bundle"
    shutil.copytree(with_plan[0], path)
    strange, ledger = b"of another library", b"its answers"
    (path / "model.fp32.plan").write_bytes(strange)
    (path / "model.fp32.plan.ledger.npz").write_bytes(ledger)
    manifest = read_manifest(path / MANIFEST)
    onnx, plan = manifest.artifacts
    plan = msgspec.structs.replace(
        plan, sha256=sha256(strange).hexdigest(), built_with={"tensorrt_rtx": "0.9"},
        parity=onnx.parity,
    )  # fmt: skip
    manifest = msgspec.structs.replace(
        manifest, artifacts=[onnx, plan],
        id=bundle_id([onnx, plan], manifest.preprocess, manifest.classes),
        files=manifest.files | {"model.fp32.plan.ledger.npz": sha256(ledger).hexdigest()},
    )  # fmt: skip
    (path / MANIFEST).write_bytes(manifest_json(manifest))
    assert not rebuild(path, exported.data).failed
    bundle = Bundle.open(path)
    assert [problem for _, problem in bundle.check() if problem] == []
    plan = plan_of(bundle)
    assert (path / plan.file).stat().st_size > 1_000_000
    assert plan.built_with["tensorrt_rtx"] != "0.9"
    assert plan.parity is None, "evidence of the old engine says nothing about the new one"
    assert not (path / "model.fp32.plan.ledger.npz").exists()
    assert bundle.manifest.artifacts[0].sha256 == onnx.sha256
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.bundle"]


def test_rebuild_of_a_bundle_without_engines_says_so_and_changes_nothing(exported):
    before = tree(exported.bundle)
    with pytest.raises(BundleError, match="holds no engine; expected one to build anew; irv2-exp"):
        rebuild(exported.bundle, exported.data)
    assert tree(exported.bundle) == before


@needs_rtx
@pytest.mark.parametrize("damage", ["empty", "garbage", "half"])
def test_a_corrupt_onnx_file_is_one_line(exported, flavour, tmp_path, damage):
    whole = (exported.bundle / "model.onnx").read_bytes()
    content = {"empty": b"", "garbage": b"no model", "half": whole[: len(whole) // 2]}[damage]
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(EngineError, match=r"bad\.onnx: TensorRT can't read it \(.+\)"):
        build_engine(tmp_path / "bad.onnx", tmp_path / "bad.plan", 8, flavour)
    assert not (tmp_path / "bad.plan").exists()


@needs_rtx
def test_a_node_that_tensorrt_does_not_know_is_named(exported, flavour, tmp_path):
    whole = (exported.bundle / "model.onnx").read_bytes()
    (tmp_path / "odd.onnx").write_bytes(whole.replace(b"Transpose", b"Transpoze"))
    with pytest.raises(EngineError, match=r"node \S+ \(Transpoze\)"):
        build_engine(tmp_path / "odd.onnx", tmp_path / "odd.plan", 8, flavour)


@needs_rtx
@pytest.mark.parametrize("max_batch", [1, 3, 64])
def test_the_largest_batch_may_be_below_the_one_the_engine_is_tuned_for(
    exported, flavour, tmp_path, max_batch
):
    build_engine(exported.bundle / "model.onnx", tmp_path / "a.plan", max_batch, flavour)
    assert (tmp_path / "a.plan").stat().st_size > 1_000_000


@needs_rtx
@pytest.mark.parametrize("after_ms", [5, 20, 40, 60])
def test_an_interrupted_build_stops_and_leaves_no_plan(exported, flavour, tmp_path, after_ms):
    # Parsing takes about 20 ms, the build 150.
    ctrl_c = threading.Timer(after_ms / 1000, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
    ctrl_c.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(exported.bundle / "model.onnx", tmp_path / "a.plan", 64, flavour)
    finally:
        ctrl_c.join()
        signal.signal(signal.SIGINT, before)
    assert not any(tmp_path.iterdir())


def artifact(**fields: object) -> Artifact:
    plan = Artifact(
        file="model.fp32.plan", sha256="0" * 64, format="tensorrt", precision="fp32", max_batch=8,
        built_from="1" * 64, built_with={"tensorrt": "11.4.0"}, parity=None,
        gpu="NVIDIA H100 80GB HBM3 (compute capability 9.0)",
    )  # fmt: skip
    return msgspec.structs.replace(plan, **fields)


def test_a_plan_of_another_version_is_recognised_before_it_is_loaded():
    check_version(Path("a.plan"), artifact(), "11.4.0")
    with pytest.raises(EngineError, match=r"a\.plan: was built with tensorrt 11\.4\.0; here is 1"):
        check_version(Path("a.plan"), artifact(), "11.5.0")


def test_a_tensorrt_plan_fits_only_the_gpu_it_was_tuned_on():
    check_gpu(Path("a.plan"), artifact(), Gpu("NVIDIA H100 80GB HBM3", "9.0"))
    with pytest.raises(EngineError, match=r"here is NVIDIA H200 \(compute capability 9\.0\)"):
        check_gpu(Path("a.plan"), artifact(), Gpu("NVIDIA H200", "9.0"))


def test_an_rtx_plan_fits_the_compute_capabilities_it_names():
    target = Flavour("tensorrt_rtx", None, None).target
    plan = artifact(format="tensorrt_rtx", gpu=target)
    for capability in RTX_CAPABILITIES:
        check_gpu(Path("a.plan"), plan, Gpu("some RTX", capability))
    for other in ("9.0", "2.0", "7.5", "8"):
        with pytest.raises(EngineError, match="was built for RTX GPU of compute capability"):
            check_gpu(Path("a.plan"), plan, Gpu("another", other))


def test_where_nothing_builds_engines_the_line_says_what_to_install(exported, tmp_path):
    program = (
        "import sys\n"
        "for name in ('tensorrt', 'tensorrt_rtx', 'cuda'): sys.modules[name] = None\n"
        "from irv2.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "export", str(exported.checkpoint_path), "--trt",
               "--precision", "fp32", "--data", str(exported.data), "--out",
               str(tmp_path / "b")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 1, result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert 'pip install "irv2[gpu]" on a machine with a GPU, or "irv2[rtx]" on any' in line
    assert not any(tmp_path.iterdir())
