"""What `irv2 verify` makes of a bundle that changes, or can't be written, while it judges."""

import errno
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import msgspec
import numpy as np
import pytest
from exported import LEDGERS, tree
from PIL import Image
from signing import key_pair
from tiny_bundle import CLASSES, PREPROCESS, write_tiny_bundle

import irv2.convert.cli
import irv2.convert.inspect.cli
import irv2.trust.inspection
from irv2.bundle import Bundle
from irv2.convert.gate.reference import Reference
from irv2.convert.gate.report import Report
from irv2.convert.gate.tolerance import tolerance_for
from irv2.convert.publish.evidence import write_rejection
from irv2.convert.rebuild import rebuild
from irv2.convert.verify import verify
from irv2.data.dataset import open_split
from irv2.errors import BundleError, ParityError
from irv2.evaluate import classify_folder
from irv2.manifest import (
    LEDGER_SUFFIX,
    MANIFEST,
    REFERENCE,
    REPORT,
    SIGNATURE,
    Artifact,
    bundle_id,
    read_manifest,
)
from irv2.runners.choose import open_best
from irv2.runners.onnx import OnnxRunner
from irv2.runners.openvino import OpenVinoRunner
from irv2.system.files import file_sha256
from irv2.system.machine import instruction_set
from irv2.trust.check import require_signature
from irv2.trust.keys import read_signer, read_trusted
from irv2.trust.sign import sign


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An image of random colours for each class."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (3, 3, 3), np.uint8).repeat(30, 0).repeat(30, 1)
        Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / "0.png")
    return tmp_path / "data"


def write_bundle(path: Path, data: Path, seed: int = 0) -> Path:
    """A tiny bundle with its float32 model's own answers as the reference."""
    refer_to(write_tiny_bundle(path, seed=seed) / "model.onnx", path, data)
    return path


def refer_to(model_path: Path, bundle: Path, data: Path) -> None:
    """Make the answers of this model the bundle's reference, which guesses with our leave."""
    with OnnxRunner(model_path, num_threads=1) as runner:
        [ledger] = classify_folder([runner], open_split(data, "val", CLASSES), PREPROCESS)
    (bundle / REFERENCE).write_bytes(Reference.from_predictions(ledger).to_bytes())
    manifest = read_manifest(bundle / MANIFEST)
    files = manifest.files | {REFERENCE: file_sha256(bundle / REFERENCE)}
    accepted = tolerance_for("fp32", accept_chance=True).accepted_loss
    Bundle(bundle, manifest).with_manifest(
        msgspec.structs.replace(manifest, files=files, accepted_loss={"fp32": accepted})
    )


@pytest.fixture
def bundle(data: Path, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "b", data)


def test_a_new_verdict_is_signed_again_or_left_unsigned(bundle, data, tmp_path):
    pair, options = key_pair(tmp_path), ["--data", str(data)]
    command = [str(bundle), *options]
    sign(bundle, read_signer(pair.private))
    for way, is_signed in (
        (["--key", str(pair.private)], True),
        (["--drop-signature"], False),
        (["--key", str(pair.private)], True),
    ):
        with pytest.raises(SystemExit) as stopped:
            irv2.convert.cli.verify.main([*command, *way])
        has_failed = bool(stopped.value.code)
        assert (bundle / SIGNATURE).exists() is (is_signed and not has_failed)
    require_signature(Bundle.open(bundle), read_trusted(pair.public))


@pytest.fixture
def with_engine(bundle: Path) -> Path:
    """The bundle with an engine that nothing here can run."""
    (bundle / "model.plan").write_bytes(b"old")
    manifest = read_manifest(bundle / MANIFEST)
    artifacts = [*manifest.artifacts, engine_of(manifest.artifacts[0], bundle)]
    Bundle(bundle, manifest).with_manifest(manifest.with_artifacts(artifacts))
    return bundle


@pytest.fixture
def failing(bundle: Path, data: Path, tmp_path: Path) -> Path:
    """The bundle with another model's answers as the reference."""
    refer_to(write_tiny_bundle(tmp_path / "other", seed=1) / "model.onnx", bundle, data)
    return bundle


def engine_of(model: Artifact, folder: Path) -> Artifact:
    return msgspec.structs.replace(
        model,
        file="model.plan",
        sha256=file_sha256(folder / "model.plan"),
        format="tensorrt",
        built_from=model.sha256,
        gpu="another",
        parity=None,
    )


def test_a_bundle_that_was_published_meanwhile_is_not_overwritten(bundle, data, tmp_path):
    newer = write_bundle(tmp_path / "newer", data, seed=1)

    def publish(_report: Report) -> None:
        shutil.rmtree(bundle)
        shutil.copytree(newer, bundle)

    with pytest.raises(BundleError, match="b: was replaced while it was judged; verify again"):
        verify(bundle, data, show=publish)
    assert tree(bundle) == tree(newer)


def test_a_rebuilt_bundle_does_not_take_the_place_of_one_that_was_published_meanwhile(
    with_engine, data, tmp_path
):
    newer = write_bundle(tmp_path / "newer", data, seed=1)

    def build(engine: Artifact, model: Artifact, folder: Path) -> Artifact:
        (folder / "model.plan").write_bytes(b"new")
        shutil.rmtree(with_engine)
        shutil.copytree(newer, with_engine)
        return engine_of(model, folder)

    with pytest.raises(BundleError, match="b: was replaced while it was judged; verify again"):
        rebuild(with_engine, data, build=build)
    assert tree(with_engine) == tree(newer)


@pytest.mark.parametrize(("which", "exit_code"), [("bundle", 1), ("failing", 3)])
def test_a_verdict_that_cannot_be_written_is_printed_and_decides_the_exit_status(
    which, exit_code, request, data, capsys
):
    path = request.getfixturevalue(which)
    (path / REPORT).mkdir()  # what also root can't write to
    with pytest.raises(SystemExit) as caught:
        irv2.convert.cli.verify.main([str(path), "--data", str(data)])
    printed, line = capsys.readouterr()
    assert caught.value.code == exit_code
    assert "model.onnx: fp32 " in printed
    verdict = "not passed: model.onnx: fp32 " if exit_code == 3 else "passed"
    assert (
        f"error: {path / REPORT}: can't be written ({os.strerror(errno.EISDIR)}); {verdict}" in line
    )


def test_a_rejection_that_cannot_be_written_still_says_what_was_rejected(failing, data, tmp_path):
    report = verify(failing, data)
    (tmp_path / "b.rejected").touch()
    with pytest.raises(ParityError, match=r"b\.rejected.*; not passed: model\.onnx"):
        write_rejection(report, {})


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        (REPORT, "run `irv2 verify "),
        (min(LEDGERS), "run `irv2 verify "),
        (REFERENCE, "export it again"),
        ("model.onnx", "export it again"),
    ],
)
def test_a_file_that_verify_writes_is_mended_by_it_and_any_other_by_an_export(
    name, way_out, bundle, data, capsys
):
    verify(bundle, data)
    (bundle / name).write_bytes(b"half a fi")
    with pytest.raises(BundleError, match=f"{name}: sha256 .*; {way_out}"):
        Bundle.open(bundle)
    with pytest.raises(SystemExit):
        irv2.convert.inspect.cli.inspect.main([str(bundle)])
    assert way_out in capsys.readouterr().err


@pytest.mark.parametrize("path", [".", "../b", "part/.."])
def test_a_bundle_may_be_named_by_the_working_folder(path, failing, data, monkeypatch, capsys):
    monkeypatch.chdir(failing)
    (failing / "part").mkdir()
    with pytest.raises(SystemExit) as caught:
        irv2.convert.cli.verify.main([path, "--data", str(data)])
    assert caught.value.code == 3
    assert "error: " in capsys.readouterr().err
    assert (failing / REPORT).read_text().startswith("# Parity of b: not passed")


def test_the_working_folders_bundle_may_be_rebuilt(with_engine, data, tmp_path, monkeypatch):
    def build(engine: Artifact, model: Artifact, folder: Path) -> Artifact:
        (folder / "model.plan").write_bytes(b"new")
        return engine_of(model, folder)

    monkeypatch.chdir(with_engine)
    before = Bundle.open(with_engine)
    assert rebuild(Path(), data, build=build).bundle == with_engine
    after = Bundle.open(with_engine)
    assert after.artifacts[1].sha256 != before.artifacts[1].sha256
    assert after.id == before.id, "the same model was judged"
    assert (with_engine / "model.plan").read_bytes() == b"new"
    assert {path.name for path in tmp_path.iterdir()} == {"b", "data"}


def test_a_bundle_of_before_whose_identity_covers_its_engine_is_verified_under_it(
    with_engine, data
):
    manifest = read_manifest(with_engine / MANIFEST)
    contents = manifest.artifacts, manifest.preprocess, manifest.classes
    old = bundle_id(*contents, with_engine_bytes=True)
    Bundle(with_engine, manifest).with_manifest(msgspec.structs.replace(manifest, id=old))
    assert not verify(with_engine, data).failed
    assert Bundle.open(with_engine).id == old != manifest.id


def test_a_bundle_that_was_not_told_to_accept_chance_fails_by_a_guessing_reference(bundle, data):
    accepted = verify(bundle, data)
    [artifact] = accepted.manifest.artifacts
    assert (accepted.failed, artifact.parity.at_chance) == ([], True)
    manifest = read_manifest(bundle / MANIFEST)
    Bundle(bundle, manifest).with_manifest(msgspec.structs.replace(manifest, accepted_loss={}))
    refused = verify(bundle, data)
    assert refused.failed == ["model.onnx"]
    assert "not shown to be better than chance (10 %)" in refused.failure


def test_a_bundle_with_fewer_names_than_its_model_has_outputs_is_refused(bundle, data):
    shutil.rmtree(data / "val" / CLASSES[9])
    refer_to(bundle / "model.onnx", bundle, data)
    manifest = msgspec.structs.replace(read_manifest(bundle / MANIFEST), classes=CLASSES[:9])
    Bundle(bundle, manifest).with_manifest(manifest.with_artifacts(manifest.artifacts))
    with pytest.raises(BundleError, match=r"gives 10 classes; expected 75 and 9, as bundle\.json"):
        verify(bundle, data)


def kinds(bundle: Path) -> list[tuple[str, str, str]]:
    """(backend, instruction set, verdict) of each row of evidence in a bundle that is whole."""
    [artifact, *_] = Bundle.open(bundle).artifacts
    assert artifact.parity == artifact.evidence[0].parity
    ledgers = {artifact.ledger(row) for row in artifact.evidence}
    assert {path.name for path in bundle.glob(f"*{LEDGER_SUFFIX}")} == ledgers
    return [(*row.kind, row.parity.verdict) for row in artifact.evidence]


def on(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Run on a processor of this kind."""
    for module in ("convert.gate.judge", "runners.choose"):
        monkeypatch.setattr(f"irv2.{module}.instruction_set", lambda backend: name)


def on_both(instruction_set: str) -> set[tuple[str, str, str]]:
    """A passed verdict on each backend of a CPU."""
    return {(backend, instruction_set, "passed") for backend in ("onnxruntime-cpu", "openvino-cpu")}


def test_another_kind_of_processor_adds_its_evidence_and_each_replaces_its_own(
    bundle, data, monkeypatch
):
    on(monkeypatch, "amx")
    verify(bundle, data)
    exporters, first = kinds(bundle), Bundle.open(bundle).artifacts[0].parity
    assert set(exporters) == on_both("amx")
    on(monkeypatch, "avx2")
    with pytest.raises(BundleError, match="judged with amx, this processor has avx2"):
        open_best(bundle, Bundle.open(bundle).artifacts)
    verify(bundle, data)
    assert kinds(bundle)[:2] == exporters, "first, as they were"
    assert set(kinds(bundle)[2:]) == on_both("avx2")
    assert Bundle.open(bundle).artifacts[0].parity == first
    table = (bundle / REPORT).read_text()
    described = irv2.trust.inspection.inspect_bundle(bundle).to_text()
    for backend, name, _ in kinds(bundle):
        ran_on = f"{backend} {version(backend.removesuffix('-cpu'))} {name} "
        assert f"| {ran_on}" in table
        assert f"  {ran_on}" in described
    open_best(bundle, Bundle.open(bundle).artifacts).runner.close()
    on(monkeypatch, "amx")
    verify(bundle, data)
    assert set(kinds(bundle)[:2]) == on_both("amx")
    assert set(kinds(bundle)[2:]) == on_both("avx2")


def mixed_up(run):
    """A `run` of an engine that gives each class the logit of its neighbour."""
    return lambda runner, images: np.roll(run(runner, images), 1, axis=1)


def test_a_kind_that_fails_leaves_the_others_served(bundle, data, monkeypatch):
    on(monkeypatch, "amx")
    verify(bundle, data)
    on(monkeypatch, "avx2")
    for engine in (OnnxRunner, OpenVinoRunner):
        monkeypatch.setattr(engine, "run", mixed_up(engine.run))
    assert verify(bundle, data).failed == ["model.onnx"]
    verdicts = [verdict for _, _, verdict in kinds(bundle)]
    assert verdicts == ["passed", "passed", "failed", "failed"]
    with pytest.raises(BundleError, match="parity failed"):
        open_best(bundle, Bundle.open(bundle).artifacts)
    on(monkeypatch, "amx")
    open_best(bundle, Bundle.open(bundle).artifacts).runner.close()


@pytest.mark.parametrize(
    ("broken", "backend"), [(OnnxRunner, "onnxruntime-cpu"), (OpenVinoRunner, "openvino-cpu")]
)
def test_a_backend_that_fails_beside_one_that_passes_is_said_and_not_served(
    bundle, data, monkeypatch, broken, backend
):
    monkeypatch.setattr(broken, "run", mixed_up(broken.run))
    report = verify(bundle, data)
    assert report.failed == []
    assert report.lines["model.onnx"].startswith("fp32 passed")
    [said] = [line for line in report.remarks if "not served" in line]
    assert said.startswith(f"model.onnx is not served on {backend}: fp32 failed")
    assert said in (bundle / REPORT).read_text()
    assert [verdict for _, _, verdict in kinds(bundle)] == ["passed", "failed"], "the best first"
    with open_best(bundle, Bundle.open(bundle).artifacts).runner as runner:
        assert runner.backend != backend


def test_the_one_verdict_of_an_older_bundle_gives_way_to_those_by_kind(bundle, data):
    [older] = Bundle.open(bundle).artifacts[0].known
    assert older.kind == ("onnxruntime-cpu", "")
    ledger = bundle / f"model.onnx{LEDGER_SUFFIX}"
    ledger.write_bytes(b"its answers")
    list_file(bundle, ledger.name)
    verify(bundle, data)
    assert set(kinds(bundle)) == on_both(instruction_set("onnxruntime-cpu"))
    assert ledger.name not in read_manifest(bundle / MANIFEST).files


def list_file(bundle: Path, name: str) -> None:
    """Enter a file into bundle.json."""
    manifest = read_manifest(bundle / MANIFEST)
    files = manifest.files | {name: file_sha256(bundle / name)}
    Bundle(bundle, manifest).with_manifest(msgspec.structs.replace(manifest, files=files))


def test_files_outside_the_bundle_are_neither_judged_nor_removed(bundle, data):
    outside = bundle.parent / f"a{LEDGER_SUFFIX}"
    outside.write_bytes(b"another's")
    list_file(bundle, f"../{outside.name}")
    with pytest.raises(BundleError, match="lies outside the bundle"):
        verify(bundle, data)
    assert outside.read_bytes() == b"another's"
