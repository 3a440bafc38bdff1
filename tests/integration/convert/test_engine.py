"""TensorRT engines on a machine without a GPU: built for real, never run, never guessed about."""

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from exported import LEDGERS, Exported, tree
from in_process import irv2
from terminal import run_on_terminal

from irv2.bundle import Bundle
from irv2.convert.engine.build import (
    RTX_CAPABILITIES,
    Flavour,
    build_engine,
    choose_flavour,
    describe_engine,
)
from irv2.convert.engine.options import EngineOptions
from irv2.convert.rebuild import rebuild
from irv2.errors import BundleError, EngineError
from irv2.manifest import (
    MANIFEST,
    REPORT,
    AcceptedLoss,
    Artifact,
    bundle_id,
    manifest_json,
    read_manifest,
)
from irv2.runners.choose import open_best, open_runner
from irv2.runners.tensorrt import (
    check_gpu,
    check_version,
    create,
    header_problems,
    load_engine,
    shared_logger,
)
from irv2.system.gpu import Gpu, find_gpu

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
    engine = ("--trt", "--profile", "1:4:12", "--profile", "13:24:64", "--workspace-mb", 512)
    place = ("--data", exported.data, "--out", out)
    result = irv2("export", exported.checkpoint_path, *place, *engine, "--precision", "fp32")
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
    assert plan.built_with["profiles"] == "1:4:12, 13:24:64"
    assert plan.built_with["workspace_mb"] == "512"
    assert plan.gpu == "RTX GPU of compute capability 8.0, 8.6, 8.9, 12.0"
    assert "model.fp32.plan: not verified here: CUDA: no usable GPU" in result.stdout
    assert "not verified here" in (path / REPORT).read_text()


@needs_rtx
@needs_no_gpu
@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--timing-cache", "cache"],
            "--timing-cache: tensorrt_rtx does not support it; expected tensorrt, on a machine "
            "with a GPU; leave it out here",
        ),
        (["--profile", "1:8"], "--profile: 1:8; expected three batch sizes, like 1:8:64"),
        (
            ["--profile", "1:4:12", "--profile", "14:24:64"],
            "--profile: none holds a batch of 13; expected no gap",
        ),
        (
            ["--profile", "1:4:12"],
            "--profile: they reach 12; expected 64, the largest batch; pass --max-batch 12 or "
            "another profile",
        ),
    ],
)
def test_an_option_that_no_engine_here_can_meet_is_one_line(exported, tmp_path, options, line):
    result = irv2(
        "export",
        exported.checkpoint_path,
        "--data",
        exported.data,
        "--trt",
        "--out",
        tmp_path / "b",
        "--precision",
        "fp32",
        *options,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == f"error: {line}"
    assert not any(tmp_path.iterdir())


@needs_rtx
def test_a_build_draws_its_steps_on_a_terminal(exported, tmp_path):
    program = (
        "import logging, sys; from pathlib import Path\n"
        "from irv2.convert.engine.build import build_engine, choose_flavour\n"
        "logging.basicConfig(level='INFO')\n"
        "build_engine(Path(sys.argv[1]), Path(sys.argv[2]), 8, choose_flavour())"
    )
    command = [
        sys.executable,
        "-c",
        program,
        str(exported.bundle / "model.onnx"),
        str(tmp_path / "a.plan"),
    ]
    returncode, _, drawn = run_on_terminal(command)
    assert returncode == 0, drawn
    done = [int(num) for num in re.findall(r"build a\.plan: .*? (\d+)/\d+ \[.*?, phase=", drawn)]
    assert done == sorted(done)
    assert len(done) > 50


class FakeTensorRT:
    """What of `tensorrt` reads a plan, without a GPU: an engine with code of its own in it."""

    class ILogger:
        ERROR = 1

    class LayerInformationFormat:
        JSON = "json"

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger):
            pass

        def deserialize_cuda_engine(self, plan):
            return self if self.engine_host_code_allowed else None

        def create_engine_inspector(self):
            return self

        def get_engine_information(self, format_):
            assert format_ == "json"
            layers = [{"Name": str(i), "LayerType": kind} for i, kind in enumerate("aab")]
            return json.dumps({"Layers": layers, "I/O Tensors": []})

        device_memory_size_v2 = 3_400_000


def test_the_inspectors_summary_reaches_the_report_also_of_a_plan_with_code_of_its_own(
    exported, tmp_path
):
    (tmp_path / "a.plan").write_bytes(b"a plan")
    flavour = Flavour("tensorrt", gpu=Gpu("NVIDIA H100", "9.0"), trt=FakeTensorRT())
    compatible = EngineOptions(version_compatible=True)
    summary = describe_engine(tmp_path / "a.plan", flavour, compatible)
    manifest = msgspec.structs.replace(
        exported.report.manifest, artifacts=[artifact(built_with=summary)]
    )
    report = dataclasses.replace(exported.report, manifest=manifest).to_markdown()
    assert "| layers 2 a, 1 b, device_memory_mb 3 |" in report
    with pytest.raises(EngineError, match=r"a\.plan: can't be loaded \(it gives no reason\)"):
        describe_engine(tmp_path / "a.plan", flavour, EngineOptions())


@needs_rtx
@needs_no_gpu
def test_an_unverified_engine_is_not_chosen(with_plan):
    bundle = Bundle.open(with_plan[0])
    with open_best(bundle.path, bundle.artifacts).runner as runner:
        assert runner.backend.endswith("-cpu")
    with pytest.raises(BundleError, match=r"model\.fp32\.plan \(tensorrt_rtx\): not verified"):
        open_best(bundle.path, bundle.artifacts, backend="tensorrt_rtx")


@needs_rtx
@needs_no_gpu
def test_opening_an_engine_without_a_gpu_is_one_clear_line(with_plan):
    bundle = Bundle.open(with_plan[0])
    with pytest.raises(EngineError, match=r"CUDA: no usable GPU .*; expected an NVIDIA GPU"):
        open_runner(bundle.path / plan_of(bundle).file, plan_of(bundle), "tensorrt")


@needs_rtx
@needs_no_gpu
def test_verify_keeps_what_it_cannot_run_and_says_why(with_plan, exported):
    path, _ = with_plan
    models = {name: sha for name, sha in tree(path).items() if name.startswith("model")}
    result = irv2("verify", path, "--data", exported.data, "--json")
    assert result.returncode == 0, result.stderr
    onnx, plan = json.loads(result.stdout)["artifacts"]
    assert onnx["parity"]["verdict"] == "passed"
    assert plan["parity"] is None
    assert plan["line"].startswith("not verified here: CUDA: no usable GPU")
    assert plan_of(Bundle.open(path)).parity is None
    assert models.items() <= tree(path).items()


def with_strange_plan(source: Path, place: Path, **changes: object) -> Path:
    """A copy of a bundle whose engine was made elsewhere; `changes` are what it says of it."""
    path = shutil.copytree(source, place / "old.bundle")
    strange, ledger = b"of another library", b"its answers"
    (path / "model.fp32.plan").write_bytes(strange)
    (path / "model.fp32.plan.ledger.npz").write_bytes(ledger)
    manifest = read_manifest(path / MANIFEST)
    onnx, plan = manifest.artifacts
    plan = msgspec.structs.replace(plan, sha256=sha256(strange).hexdigest(), **changes)
    manifest = msgspec.structs.replace(
        manifest,
        artifacts=[onnx, plan],
        id=bundle_id([onnx, plan], manifest.preprocess, manifest.classes),
        files=manifest.files | {"model.fp32.plan.ledger.npz": sha256(ledger).hexdigest()},
    )
    (path / MANIFEST).write_bytes(manifest_json(manifest))
    return path


@needs_rtx
@needs_no_gpu
def test_rebuild_makes_a_strange_engine_anew_as_it_was_and_judges_the_bundle(
    with_plan, exported, tmp_path
):
    built_with = {"tensorrt_rtx": "0.9", "profiles": "1:2:3, 4:8:64", "workspace_mb": "256"}
    path = with_strange_plan(with_plan[0], tmp_path, built_with=built_with)
    onnx = read_manifest(path / MANIFEST).artifacts[0]
    result = irv2("verify", path, "--data", exported.data, "--rebuild")
    assert result.returncode == 0, result.stderr
    bundle = Bundle.open(path)
    plan = plan_of(bundle)
    assert (path / plan.file).stat().st_size > 1_000_000
    assert plan.built_with["tensorrt_rtx"] != "0.9"
    assert plan.built_with.items() >= {"profiles": "1:2:3, 4:8:64", "workspace_mb": "256"}.items()
    assert plan.parity is None
    assert not (path / "model.fp32.plan.ledger.npz").exists()
    assert (path / REPORT).read_text().startswith("# Parity of old.bundle: passed\n")
    assert bundle.manifest.artifacts[0].sha256 == onnx.sha256
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.bundle"]


@needs_rtx
@needs_no_gpu
@pytest.mark.parametrize("format_", ["tensorrt", "tensorrt_rtx"])
def test_rebuild_never_trades_an_engine_that_passed_for_one_that_cannot_be_judged(
    with_plan, exported, tmp_path, format_
):
    passed = msgspec.structs.replace(
        Bundle.open(with_plan[0]).manifest.artifacts[0].parity, ran_on=format_
    )
    path = with_strange_plan(with_plan[0], tmp_path, format=format_, parity=passed)
    before = tree(path)
    result = irv2("verify", path, "--data", exported.data, "--rebuild")
    assert result.returncode == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(
        f"error: model.fp32.plan: passed on {format_}; a new one by tensorrt_rtx"
    )
    assert line.endswith("; expected a machine that runs it; rebuild there")
    assert tree(path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["old.bundle"]


@needs_rtx
@needs_no_gpu
def test_a_rebuild_that_fails_leaves_the_bundle_and_its_report_beside_it(
    with_plan, exported, tmp_path
):
    path = with_strange_plan(with_plan[0], tmp_path)
    manifest = read_manifest(path / MANIFEST)
    strict = AcceptedLoss(top1_points=1e-9, top5_points=1e-9, confidence=0.95)
    int8 = msgspec.structs.replace(manifest.artifacts[0], precision="int8")  # may not be identical
    changed = msgspec.structs.replace(
        manifest, artifacts=[int8, *manifest.artifacts[1:]], accepted_loss={"int8": strict}
    )
    Bundle(path, manifest).with_manifest(changed)
    before = tree(path)
    result = irv2("verify", path, "--data", exported.data, "--rebuild")
    assert result.returncode == 3, result.stderr
    rejected = tmp_path / "old.bundle.rejected"
    assert f"the old one is still there; see {rejected}/parity.md" in result.stderr
    assert (rejected / REPORT).read_text().startswith("# Parity of old.bundle: not passed\n")
    assert set(tree(rejected)) == {REPORT, "reference.npz", *LEDGERS}
    assert tree(path) == before
    Bundle(path, changed).with_manifest(manifest)
    assert irv2("verify", path, "--data", exported.data, "--rebuild").returncode == 0
    assert not rejected.exists()


def test_rebuild_of_a_bundle_without_engines_says_so_and_changes_nothing(exported):
    before = tree(exported.bundle)
    with pytest.raises(BundleError, match="holds no engine; expected one to build anew; irv2-exp"):
        rebuild(exported.bundle, exported.data)
    assert tree(exported.bundle) == before


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "is_malformed"),
    [
        (lambda plan: plan, False),
        (lambda plan: plan[:64], False),  # the header alone
        (lambda plan: plan[:40], True),
        (lambda plan: b"garbage!" * 8, True),
        (lambda plan: b"", True),
    ],
)
def test_the_header_of_an_rtx_plan_is_checked_without_a_gpu(
    with_plan, flavour, damage, is_malformed
):
    runtime = create(flavour.trt.Runtime, shared_logger(flavour.trt))
    plan = damage((with_plan[0] / "model.fp32.plan").read_bytes())
    problems = header_problems(flavour.trt, runtime, plan)
    assert ("malformed engine" in problems) == is_malformed


@needs_rtx
def test_a_damaged_plan_is_one_line_before_it_is_loaded(flavour, tmp_path):
    (tmp_path / "a.plan").write_bytes(b"garbage!" * 1000)
    with pytest.raises(EngineError) as caught:
        load_engine(flavour.trt, tmp_path / "a.plan", has_own_code=False)
    assert str(caught.value) == (
        f"{tmp_path}/a.plan: its header says malformed engine; expected a plan of tensorrt_rtx; "
        "irv2 verify --rebuild makes it again for this machine"
    )


@needs_rtx
def test_a_plan_cut_short_is_one_line_with_the_librarys_reason(with_plan, flavour, tmp_path):
    plan = (with_plan[0] / "model.fp32.plan").read_bytes()
    (tmp_path / "a.plan").write_bytes(plan[: len(plan) // 2])
    with pytest.raises(EngineError, match=r"a\.plan: can't be loaded \(.*blobSize"):
        load_engine(flavour.trt, tmp_path / "a.plan", has_own_code=False)


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
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        build_engine(exported.bundle / "model.onnx", tmp_path / "a.plan", 64, flavour)
    ctrl_c.join()
    assert not any(tmp_path.iterdir())


def artifact(**fields: object) -> Artifact:
    plan = Artifact(
        file="model.fp32.plan",
        sha256="0" * 64,
        format="tensorrt",
        precision="fp32",
        max_batch=8,
        built_from="1" * 64,
        built_with={"tensorrt": "11.4.0"},
        parity=None,
        gpu="NVIDIA H100 80GB HBM3 (compute capability 9.0)",
    )
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
        "from irv2.cli.main import main; main()"
    )
    command = [
        sys.executable,
        "-c",
        program,
        "export",
        str(exported.checkpoint_path),
        "--trt",
        "--precision",
        "fp32",
        "--data",
        str(exported.data),
        "--out",
        str(tmp_path / "b"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert result.returncode == 1, result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert 'pip install "irv2[gpu]" on a machine with a GPU, or "irv2[rtx]" on any' in line
    assert not any(tmp_path.iterdir())
