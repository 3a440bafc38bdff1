"""The gate again, from the bundle and the images alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from exported import BUNDLE_FILES, Exported, tree
from in_process import irv2
from PIL import Image
from serving_process import serving

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.candidate import ExportOptions
from irv2.convert.export import export
from irv2.convert.gate.report import Report
from irv2.convert.onnx.float32 import write_onnx
from irv2.convert.verify import verify
from irv2.errors import BundleError, DataError
from irv2.manifest import MANIFEST, read_manifest
from irv2.runners.choose import open_best
from irv2.system.files import file_sha256


@pytest.fixture
def bundle(exported: Exported, tmp_path: Path) -> Path:
    """A copy to write into, away from checkpoint and images."""
    return shutil.copytree(exported.bundle, tmp_path / "copy.bundle")


def forge(path: Path, **changes: object) -> None:
    """Change the first artefact in bundle.json, hashes and id included."""
    first, *others = read_manifest(path / MANIFEST).artifacts
    change_manifest(path, artifacts=[msgspec.structs.replace(first, **changes), *others])


def change_manifest(path: Path, **changes: object) -> None:
    """Change bundle.json, hash and id included."""
    manifest = msgspec.structs.replace(read_manifest(path / MANIFEST), **changes)
    Bundle(path, manifest).with_manifest(manifest.with_artifacts(manifest.artifacts))


def test_program_verifies_without_torch_onnx_or_checkpoint(bundle, exported):
    forge(bundle, parity=None)
    models = file_sha256(bundle / "model.onnx")
    identity = Bundle.open(bundle).id
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'sklearn'): sys.modules[name] = None\n"
        "from irv2.cli.main import main; main()"
    )
    command = [sys.executable, "-c", program, "verify", str(bundle), "--data", str(exported.data)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "model.onnx: fp32 passed: identical on all 48 images" in result.stdout
    after = Bundle.open(bundle)  # every hash holds, the new report's too
    assert after.manifest.artifacts[0].parity.verdict == "passed"
    assert (after.id, file_sha256(bundle / "model.onnx")) == (identity, models)
    assert set(tree(bundle)) == BUNDLE_FILES


WITHOUT_ONNXRUNTIME = """
import importlib.metadata, sys
sys.modules["onnxruntime"] = None
known = importlib.metadata.version

def version(name):
    if name == "onnxruntime":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)

importlib.metadata.version = version
"""


def test_openvino_alone_can_verify_classify_and_serve(bundle, exported, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_ONNXRUNTIME)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    forge(bundle, parity=None, evidence=[])
    program = [sys.executable, "-m", "irv2"]
    data = ["--data", str(exported.data)]
    subprocess.run([*program, "verify", str(bundle), *data], check=True)
    [artifact] = Bundle.open(bundle).artifacts
    assert [row.backend for row in artifact.evidence] == ["openvino-cpu"]
    picture = next((exported.data / "val").rglob("*.png"))
    subprocess.run([*program, "classify", "--bundle", str(bundle), str(picture)], check=True)
    with serving(bundle) as server:
        assert " backend=openvino-cpu " in server.ready_line


def test_evidence_is_the_exports_but_for_what_only_it_could_see(bundle, exported):
    before = Bundle.open(bundle).manifest.artifacts[0].parity
    after = verify(bundle, exported.data).manifest.artifacts[0].parity
    # Without the checkpoint only the five best logits are at hand.
    assert after.max_abs_logit_diff <= before.max_abs_logit_diff
    same = msgspec.structs.replace(after, max_abs_logit_diff=before.max_abs_logit_diff)
    assert same == before


def test_a_model_that_decides_otherwise_fails_with_3_and_is_no_longer_served(
    bundle, exported, monkeypatch
):
    checkpoint = Checkpoint.load(exported.checkpoint_path)
    weights = dict(checkpoint.state_dict)
    weights["classifier.weight"] = -weights["classifier.weight"]
    write_onnx(replace(checkpoint, state_dict=weights), "0" * 64, bundle / "model.onnx")
    forge(bundle, sha256=file_sha256(bundle / "model.onnx"))
    monkeypatch.chdir(bundle)
    result = irv2("verify", ".", "--data", exported.data)
    assert result.returncode == 3, result.stderr
    assert "model.onnx: fp32 failed: " in result.stderr
    after = Bundle.open(bundle)
    assert after.manifest.artifacts[0].parity.verdict == "failed"
    with pytest.raises(BundleError, match="parity failed"):
        open_best(after.path, after.artifacts)


def test_images_are_found_wherever_they_are_and_whatever_lies_beside_them(
    bundle, exported, tmp_path
):
    elsewhere = shutil.copytree(exported.data, tmp_path / "elsewhere")
    for path in elsewhere.glob("val/red/*.png"):
        path.rename(path.with_name(f"photo-{path.name}"))
    Image.new("RGB", (90, 90)).save(elsewhere / "val" / "red" / "another.png")
    parity = verify(bundle, elsewhere).manifest.artifacts[0].parity
    assert (parity.n, parity.verdict) == (48, "passed")


def test_other_images_are_refused_and_nothing_is_written(bundle, exported, tmp_path):
    changed = shutil.copytree(exported.data, tmp_path / "changed")
    Image.new("RGB", (90, 90)).save(changed / "val" / "red" / "0.png")
    before = tree(bundle)
    with pytest.raises(DataError, match="1 of the 48 images that the bundle was judged on"):
        verify(bundle, changed)
    assert tree(bundle) == before


def test_evidence_from_another_backend_is_not_enough_until_verify_took_its_own(bundle, exported):
    row = Bundle.open(bundle).manifest.artifacts[0].evidence[0]
    of_a_gpu = msgspec.structs.replace(row, backend="onnxruntime-cuda", instruction_set="sm_90")
    forge(bundle, evidence=[of_a_gpu])
    with pytest.raises(BundleError) as caught:
        open_best(bundle, Bundle.open(bundle).artifacts)
    for backend in ("openvino-cpu", "onnxruntime-cpu"):
        assert f"model.onnx ({backend}): was judged on onnxruntime-cuda" in str(caught.value)
    assert str(caught.value).endswith(f"run `irv2 verify {bundle}` on this machine")
    verify(bundle, exported.data)
    [artifact] = Bundle.open(bundle).artifacts
    backends = [row.backend for row in artifact.evidence]
    assert (backends[0], len(backends)) == ("onnxruntime-cuda", 3), "another's evidence is kept"
    with open_best(bundle, [artifact]).runner as runner:
        assert runner.backend.endswith("-cpu")


@pytest.fixture
def with_bf16(bundle: Path) -> Path:
    """The copy with a bf16 file that was never judged and, unlike a real one, runs on a CPU."""
    shutil.copy(bundle / "model.onnx", bundle / "model.bf16.onnx")
    manifest = read_manifest(bundle / MANIFEST)
    [fp32] = manifest.artifacts
    bf16 = msgspec.structs.replace(
        fp32, file="model.bf16.onnx", precision="bf16", built_from=fp32.sha256, parity=None
    )
    change_manifest(bundle, artifacts=[fp32, bf16])
    return bundle


def tolerances(report: Report) -> list[tuple[float, float, float]]:
    """(top-1 points, top-5 points, confidence) by which each artefact was judged."""
    parities = [artifact.parity for artifact in report.manifest.artifacts]
    return [(p.top1.tolerance_points, p.top5.tolerance_points, p.confidence) for p in parities if p]


def test_what_the_export_could_not_run_is_judged_by_its_own_precisions_tolerance(
    with_bf16, exported
):
    report = verify(with_bf16, exported.data)
    assert tolerances(report) == [(0.1, 0.1, 0.95), (0.5, 0.5, 0.95)]


def test_what_the_export_was_asked_to_accept_is_kept_also_for_what_it_could_not_run(
    with_bf16, exported, tmp_path
):
    asked = {
        "tolerance_top1": 7.0,
        "confidence": 0.9,
        "max_disagreement": 5.0,
        "accept_chance": True,
        "per_class": "report",
    }
    options = ExportOptions(precisions=("bf16",), **asked)
    exporting = export(exported.checkpoint_path, exported.data, tmp_path / "asked.bundle", options)
    recorded = exporting.manifest.accepted_loss
    assert {precision: msgspec.structs.astuple(loss) for precision, loss in recorded.items()} == {
        "fp32": (7.0, 0.1, 0.9, 5.0, True, "report"),
        "bf16": (7.0, 0.5, 0.9, 5.0, True, "report"),
    }
    change_manifest(with_bf16, accepted_loss=recorded)
    report = verify(with_bf16, exported.data)
    assert tolerances(report) == [(7.0, 0.1, 0.9), (7.0, 0.5, 0.9)]
    assert "(90 %)" in "".join(report.remarks)
    limits = {a.parity.disagreement.limit_points for a in report.manifest.artifacts}
    assert limits == {5.0}


def test_every_edge_of_every_profile_of_an_engine_is_a_batch_size_that_is_tried(bundle, exported):
    forge(bundle, built_with={"profiles": "1:3:12, 13:14:16"})
    [artifact] = verify(bundle, exported.data).manifest.artifacts
    assert artifact.invariance.batch_sizes == [*range(1, 10), 12, 13, 14, 15, 16]


def test_a_report_that_a_crash_left_behind_is_written_anew(bundle, exported):
    (bundle / "parity.md").write_text("half a rep")
    with pytest.raises(BundleError, match=r"parity\.md"):
        Bundle.open(bundle)
    verify(bundle, exported.data)
    Bundle.open(bundle)
    assert "identical on all 48 images" in (bundle / "parity.md").read_text()


@pytest.mark.parametrize("name", sorted(BUNDLE_FILES))
def test_a_flipped_byte_in_any_file_is_named_before_anything_is_loaded(bundle, name):
    whole = (bundle / name).read_bytes()
    for place in (0, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        (bundle / name).write_bytes(content)
        with pytest.raises(BundleError, match=re.escape(name)):
            Bundle.open(bundle)
    result = irv2("inspect", bundle)
    assert result.returncode == 2
    assert name in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz"])
def test_a_changed_byte_elsewhere_is_named_and_nothing_is_run(bundle, exported, name):
    content = bytearray((bundle / name).read_bytes())
    content[100] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}: sha256 .*the file was changed"):
        verify(bundle, exported.data)


def test_a_server_that_asks_for_a_token_is_verified_with_one(bundle, exported, tmp_path):
    tokens, token = tmp_path / "tokens", tmp_path / "token"
    tokens.write_text("verifier 0123456789abcdef\n")
    token.write_text("0123456789abcdef\n")
    with serving(bundle, "--token-file", str(tokens)) as server:
        options = ["--data", str(exported.data), "--server", server.address]
        refused = irv2("verify", bundle, *options)
        asked = irv2("verify", bundle, *options, "--token-file", token, "--json")
    assert refused.returncode == 1
    assert "takes no request without a valid token" in refused.stderr
    assert asked.returncode == 0, asked.stderr
    report = json.loads(asked.stdout)
    assert report["n"] == report["num_equal"] == report["num_checkpoint_top1"] == 48
