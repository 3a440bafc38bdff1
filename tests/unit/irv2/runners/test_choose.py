"""Which artefact and backend a bundle is served with here, and why not with another."""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import msgspec
import pytest
from tiny_bundle import passed_parity, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import BundleError, EngineError
from irv2.manifest import Evidence
from irv2.runners import choose, onnx, speed
from irv2.runners.base import Runner
from irv2.runners.choose import Choice, open_best
from irv2.runners.openvino import OpenVinoRunner

HERE = "amx"


@pytest.fixture(autouse=True)
def _on_a_kind_of_processor(monkeypatch):
    monkeypatch.setattr(choose, "instruction_set", lambda backend: HERE)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(write_tiny_bundle(tmp_path / "b"))


def row(
    backend: str,
    rate: float | None,
    instruction_set: str = HERE,
    verdict: str = "passed",
    version: str = "",
) -> Evidence:
    return Evidence(
        backend=backend,
        backend_version=version,
        instruction_set=instruction_set,
        threads=2,
        parity=passed_parity(verdict),
        invariance=None,
        images_per_s=rate,
    )


def best(bundle: Bundle, *rows: Evidence, measure: bool = False) -> Choice:
    """What is chosen of the bundle with these rows of evidence; closed again."""
    [artifact] = bundle.artifacts
    judged = msgspec.structs.replace(artifact, parity=rows[0].parity, evidence=list(rows))
    chosen = open_best(bundle.path, [judged], num_threads=1, measure=measure)
    chosen.runner.close()
    return chosen


@pytest.mark.parametrize(
    ("faster", "slower"),
    [("onnxruntime-cpu", "openvino-cpu"), ("openvino-cpu", "onnxruntime-cpu")],
)
def test_the_fastest_on_record_is_chosen(bundle, faster, slower):
    chosen = best(bundle, row(slower, 40.0), row(faster, 71.5))
    assert chosen.runner.backend == chosen.evidence.backend == faster
    assert chosen.how == "recorded 71.5 images/s"


def test_of_those_that_are_as_fast_the_one_that_changes_fewer_answers_is_chosen(bundle):
    def with_agreement(backend: str, rate: float, agreement: float) -> Evidence:
        parity = msgspec.structs.replace(passed_parity(), agreement=agreement)
        return msgspec.structs.replace(row(backend, rate), parity=parity)

    faithful = with_agreement("onnxruntime-cpu", 97.0, 100.0)
    fast = with_agreement("openvino-cpu", 100.0, 99.5)
    assert best(bundle, fast, faithful).runner.backend == "onnxruntime-cpu"
    faster = with_agreement("openvino-cpu", 101.0, 99.5)
    assert best(bundle, faster, faithful).runner.backend == "openvino-cpu"
    same = with_agreement("onnxruntime-cpu", 97.0, 99.5)
    assert best(bundle, fast, same).runner.backend == "openvino-cpu"


def test_what_failed_here_is_not_served_however_fast_nor_what_passed_elsewhere(bundle):
    chosen = best(
        bundle,
        row("openvino-cpu", 90.0, "avx2"),
        row("onnxruntime-cpu", 40.0),
        row("openvino-cpu", 80.0, verdict="failed"),
    )
    assert chosen.runner.backend == "onnxruntime-cpu"


def test_evidence_of_another_kind_of_processor_is_refused_with_the_way_out(bundle):
    with pytest.raises(BundleError) as caught:
        best(bundle, row("openvino-cpu", 90.0, "avx2"), row("openvino-cpu", 90.0, "avx512_vnni"))
    line = str(caught.value)
    assert "(openvino-cpu): was judged with avx2, avx512_vnni, this processor has amx" in line
    assert "(onnxruntime-cpu): was judged on openvino-cpu" in line
    assert line.endswith(f"run `irv2 verify {bundle.path}` on this machine")


def test_what_says_nothing_of_the_processor_counts_where_there_is_nothing_better(bundle):
    """The one verdict of a bundle of before 2026-11-30."""
    assert best(bundle, row("openvino-cpu", None, "")).how == "by order"
    with pytest.raises(BundleError, match=r"\(openvino-cpu\): parity failed"):
        best(bundle, row("openvino-cpu", None, ""), row("openvino-cpu", None, verdict="failed"))


def test_without_every_speed_the_likely_order_decides(bundle):
    chosen = best(bundle, row("onnxruntime-cpu", 90.0), row("openvino-cpu", None))
    assert (chosen.runner.backend, chosen.how) == ("openvino-cpu", "by order")


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino-cpu"])
def test_a_backend_of_another_version_serves_and_both_are_named(bundle, caplog, backend):
    caplog.set_level("INFO", "irv2.runners.choose")
    here = best(bundle, row(backend, 40.0)).runner.backend_version
    assert here == version(backend.removesuffix("-cpu"))
    best(bundle, row(backend, 40.0, version=here))
    assert caplog.messages == []
    assert best(bundle, row(backend, 40.0, version="1.2.3")).runner.backend == backend
    [line] = caplog.messages
    assert f"was judged on {backend} 1.2.3, here is {here}: run `irv2 verify {bundle.path}`" in line


@pytest.fixture
def no_openvino(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.fixture
def no_onnxruntime(monkeypatch):
    monkeypatch.setattr(onnx, "_installed", list)


def test_a_faster_backend_that_is_not_installed_is_named_once_with_the_way_out(
    bundle, no_openvino, caplog
):
    judged = [row("onnxruntime-cpu", 40.0), row("openvino-cpu", 71.5)]
    [artifact] = bundle.artifacts
    both = [
        msgspec.structs.replace(artifact, file=file, parity=judged[0].parity, evidence=judged)
        for file in (artifact.file, "other.onnx")
    ]
    chosen = open_best(bundle.path, both, num_threads=1)
    assert chosen.runner.backend == "onnxruntime-cpu"
    [line] = caplog.messages
    assert line.startswith("passed over: model.onnx (openvino-cpu): OpenVINO: can't be imported")
    assert line.endswith('pip install "irv2[openvino]"')


def test_a_slower_backend_that_is_not_installed_is_not_mentioned(bundle, no_openvino, caplog):
    best(bundle, row("openvino-cpu", 40.0), row("onnxruntime-cpu", 71.5))
    assert caplog.messages == []


def test_where_the_only_backend_that_passed_is_not_installed_it_is_the_way_out(bundle, no_openvino):
    with pytest.raises(BundleError, match=r"\(openvino-cpu\): OpenVINO: .*irv2\[openvino\]"):
        best(bundle, row("openvino-cpu", 71.5))


def test_openvino_serves_without_onnxruntime(bundle, no_onnxruntime, caplog):
    rows = row("onnxruntime-cpu", 90.0), row("openvino-cpu", 71.5)
    assert best(bundle, *rows).runner.backend == "openvino-cpu"
    [line] = caplog.messages
    assert line.startswith("passed over: model.onnx (onnxruntime-cpu): onnxruntime: not installed")
    assert 'irv2[cpu]"' in line


def test_what_nothing_installed_runs_is_said(bundle, no_onnxruntime, no_openvino, monkeypatch):
    with pytest.raises(EngineError, match=r"onnxruntime: not installed; pip install"):
        best(bundle, row("onnxruntime-cpu", 90.0))
    monkeypatch.undo()
    monkeypatch.setattr(onnx, "_installed", list)
    [artifact] = bundle.artifacts
    half = msgspec.structs.replace(artifact, precision="fp16", parity=None, evidence=[])
    with pytest.raises(BundleError, match=r"model\.onnx: no backend that is installed runs it"):
        open_best(bundle.path, [half])


@pytest.fixture
def timed(monkeypatch) -> list[Runner]:
    """The runners that are timed; ONNX Runtime is faster than OpenVINO."""
    runners: list[Runner] = []

    def images_per_s(some: Sequence[Runner]) -> list[float]:
        runners.extend(some)
        return [52.5 if runner.backend == "onnxruntime-cpu" else 41.0 for runner in some]

    monkeypatch.setattr(speed, "images_per_s", images_per_s)
    return runners


@pytest.fixture
def closed(monkeypatch) -> list[str]:
    """The backends of OpenVINO's runners that were closed."""
    backends: list[str] = []
    monkeypatch.setattr(OpenVinoRunner, "close", lambda runner: backends.append(runner.backend))
    return backends


def test_measuring_takes_the_faster_whatever_is_on_record_and_closes_the_other(
    bundle, timed, closed
):
    rows = row("openvino-cpu", 90.0), row("onnxruntime-cpu", 10.0)
    chosen = best(bundle, *rows, measure=True)
    assert [runner.backend for runner in timed] == ["openvino-cpu", "onnxruntime-cpu"]
    assert (chosen.runner.backend, chosen.how) == ("onnxruntime-cpu", "measured 52.5 images/s")
    assert closed == ["openvino-cpu"]


def test_an_engine_that_fails_while_it_is_measured_is_passed_over_and_named(
    bundle, monkeypatch, closed, caplog
):
    def images_per_s(runners: Sequence[Runner]) -> list[float]:
        if runners[0].backend == "openvino-cpu":
            raise EngineError("OpenVINO", "is broken")
        return [10.0]

    monkeypatch.setattr(speed, "images_per_s", images_per_s)
    rows = row("openvino-cpu", 90.0), row("onnxruntime-cpu", 10.0)
    assert best(bundle, *rows, measure=True).runner.backend == "onnxruntime-cpu"
    assert closed == ["openvino-cpu"]
    assert "passed over: model.onnx (openvino-cpu): OpenVINO: is broken" in caplog.text
    with pytest.raises(BundleError, match=r"\(openvino-cpu\): OpenVINO: is broken"):
        best(bundle, rows[0], measure=True)
