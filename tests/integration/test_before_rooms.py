"""What was made before the code moved into rooms (2026-11-29) loads, and means the same.

tests/data/before_rooms holds a stopped run, its bundle, entries of the user's cache, and what the
programs of that day answered. The network is the narrowest there is, trained on 24 images.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from project import ROOT

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.cli.main import main
from irv2.data.dataset import open_split
from irv2.ledger import Ledger
from irv2.manifest import manifest_json, read_manifest

BEFORE = ROOT / "tests" / "data" / "before_rooms"
DATA = BEFORE / "data"
RECIPE = (
    "--setting=2 --width=0.03 --blocks 1 1 1 --image-size=75 --batch-size=8 --bn-group=4 "
    "--epochs=8 --workers=1 --device=cpu --momentum=0.9"
)
EXPORT = "--precision=fp32,int8 --tolerance-top1=30 --tolerance-top5=30 --max-batch=4"


def irv2(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """An empty cache of the user's; the only entry of one of its folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def only_entry(folder: str) -> Path:
        [entry] = (tmp_path / "cache" / "irv2" / folder).iterdir()
        return entry

    return only_entry


def test_a_checkpoint_has_the_errors_that_it_had():
    found = json.loads(irv2("eval", BEFORE / "run/best.pt", "--data", DATA, "--json").stdout)
    expected = json.loads((BEFORE / "eval.json").read_text())
    same = ("n", "top1_error", "top5_error", "crops", "backend")
    assert [found[name] for name in same] == [expected[name] for name in same]


def test_a_stopped_run_goes_on_to_its_end(tmp_path):
    out = tmp_path / "run"
    shutil.copytree(BEFORE / "run", out)
    before = (out / "metrics.jsonl").read_text().splitlines()
    step = Checkpoint.load(out / "last.pt").step
    result = irv2("train", *RECIPE.split(), "--data", DATA, "--out", out, "--resume")
    after = (out / "metrics.jsonl").read_text().splitlines()
    assert (len(before), len(after)) == (6, 8), result.stderr
    assert after[:6] == before
    assert Checkpoint.load(out / "last.pt").step == 8 * 3 > step


def test_a_bundle_is_the_same_to_the_byte_and_answers_as_it_did():
    bundle = Bundle.open(BEFORE / "bundle")
    path = bundle.path / "bundle.json"
    assert manifest_json(read_manifest(path)) == path.read_bytes()
    expected = json.loads((BEFORE / "classify.json").read_text())
    assert bundle.id == expected["model_id"]
    images = [
        DATA / "val" / Path(each["file"]).parent.name / "0.png" for each in expected["results"]
    ]
    for result, each in zip(bundle.classify(images, top_k=6), expected["results"], strict=True):
        assert [score.label for score in result.scores] == [s["label"] for s in each["scores"]]
        # Another processor rounds int8 in another place.
        assert [score.probability for score in result.scores] == pytest.approx(
            [s["probability"] for s in each["scores"]], abs=0.02
        )


def test_a_bundle_gets_the_verdicts_that_it_had(tmp_path):
    shutil.copytree(BEFORE / "bundle", tmp_path / "bundle")
    irv2("verify", tmp_path / "bundle", "--data", DATA)
    before, after = (read_manifest(folder / "bundle/bundle.json") for folder in (BEFORE, tmp_path))
    for old, new in zip(before.artifacts, after.artifacts, strict=True):
        assert (new.sha256, new.parity.verdict) == (old.sha256, old.parity.verdict)
        assert (new.parity.n, new.parity.data_sha256) == (48, old.parity.data_sha256)
        assert new.parity.top1.reference_error == old.parity.top1.reference_error
    assert after.id == before.id


def test_ledgers_hold_what_they_held():
    ledger = Ledger.load(BEFORE / "bundle/model.onnx.ledger.npz")
    reference = Ledger.load(BEFORE / "bundle/reference.npz")
    assert (len(ledger), ledger.keys) == (48, reference.keys)
    assert (ledger.top5 == reference.top5).all()


@pytest.mark.slow
def test_entries_of_the_cache_that_lack_their_key_are_made_again(cache, tmp_path, caplog):
    """Their names hang on versions of libraries, so each takes the place of one made today."""
    export = ["export", BEFORE / "run/best.pt", "--data", DATA, *EXPORT.split(), "--out"]
    irv2(*export, tmp_path / "first.bundle")
    for kind in ("reference", "calibration"):
        shutil.copyfile(BEFORE / "cache" / f"{kind}.npz", cache(kind))
    caplog.set_level("INFO", "irv2")
    irv2(*export, tmp_path / "second.bundle")
    assert "unreadable reference, made again" in caplog.text
    assert "unreadable calibration, made again" in caplog.text
    irv2(*export, tmp_path / "third.bundle")
    assert "reference: 48 answers of this checkpoint, kept from before" in caplog.text
    assert "calibrate: ranges over 24 images, kept from before" in caplog.text
    ids = {Bundle.open(tmp_path / f"{name}.bundle").id for name in ("first", "second", "third")}
    assert len(ids) == 1


def test_the_files_of_a_folder_are_what_they_were():
    expected = json.loads((BEFORE / "cache/index_val.json").read_bytes())
    found = open_split(DATA, "val")
    assert found.classes == tuple(expected["files"])
    assert list(found.files) == [file for files in expected["files"].values() for file in files]
