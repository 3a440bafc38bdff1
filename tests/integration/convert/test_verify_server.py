"""`irv2 verify --server` against a real server that answers right, nearly right, and wrongly."""

import asyncio
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from serving_process import serving
from serving_site import Site
from tiny_bundle import CLASSES, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.convert.verify_server import TIES, served_artifact
from irv2.data.dataset import open_split
from irv2.errors import BundleError
from irv2.evaluate import classify_folder
from irv2.ledger import Ledger
from irv2.manifest import LEDGER_SUFFIX, REFERENCE
from irv2.runners.base import Runner
from irv2.runners.choose import open_best
from irv2.v1.classifier_pb2 import Model

NUM_PER_CLASS = 4
LEDGER = f"model.onnx{LEDGER_SUFFIX}"


class Doctored(Runner):
    """An engine whose logits are tampered with, or which sees its images moved to the right."""

    def __init__(self, inner: Runner, tamper, shift: int = 0) -> None:
        self.inner, self.tamper, self.shift = inner, tamper, shift
        self.backend, self.image_size = inner.backend, inner.image_size
        self.num_classes, self.max_batch = inner.num_classes, inner.max_batch

    def run(self, images):
        return self.tamper(self.inner.run(np.roll(images, self.shift, axis=2)))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """val/CLASS/*, of no meaning but clear: coarse noise."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name in CLASSES:
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for number in range(NUM_PER_CLASS):
            blocks = rng.integers(0, 256, (3, 3, 3), np.uint8).repeat(40, 0).repeat(30, 1)
            Image.fromarray(blocks).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, data) -> Bundle:
    return judged_bundle(tmp_path_factory.mktemp("verify") / "tiny.bundle", data)


def judged_bundle(path: Path, data: Path, mask: float = 0.0) -> Bundle:
    """A bundle with the evidence of a gate."""
    bundle = Bundle.open(write_tiny_bundle(path, mask=mask))
    with open_best(bundle.path, bundle.artifacts, num_threads=1).runner as runner:
        [ledger] = classify_folder(
            [runner], open_split(data, "val", bundle.classes), bundle.preprocess
        )
    for name in (REFERENCE, LEDGER):
        (bundle.path / name).write_bytes(Ledger.from_predictions(ledger).to_bytes())
    return bundle


@pytest.fixture(scope="module")
def ledger(bundle) -> Ledger:
    return Ledger.load(bundle.path / LEDGER)


def run_verify(evidence: Path, address: str, data: Path) -> subprocess.CompletedProcess:
    """`irv2 verify --server` in a process that has no engine."""
    program = (
        "import sys; sys.modules['onnxruntime'] = sys.modules['torch'] = None; "
        "from irv2.cli.main import main; main.main(['verify', *sys.argv[1:]], prog_name='irv2')"
    )
    command = [sys.executable, "-c", program, str(evidence), "--server", address]
    return subprocess.run(
        [*command, "--data", str(data), "--json"], capture_output=True, text=True, timeout=60
    )


def verify(served: Bundle, data: Path, tamper=None, evidence: Path | None = None, shift: int = 0):
    """The exit code, JSON and stderr of `irv2 verify --server` on a server in this process."""

    async def scenario():
        site = Site(served, seconds=0.0)
        await site.server.start()
        if tamper or shift:  # after the self-test, which would notice
            site.runner.inner = Doctored(site.runner.inner, tamper or np.copy, shift)
        address = site.server.ready_line.split()[1]
        try:
            return await asyncio.to_thread(run_verify, evidence or served.path, address, data)
        finally:
            await site.server.stop()

    done = asyncio.run(scenario())
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_several_front_ends_answer_as_recorded(bundle, data):
    with serving(bundle.path, "--front-ends", "2") as process:
        done = run_verify(bundle.path, process.address, data)
    report = json.loads(done.stdout)
    assert (done.returncode, report["num_equal"]) == (0, report["n"]), done.stderr
    assert report["n"] == len(CLASSES) * NUM_PER_CLASS


def swap_two(logits):
    """Classes 2 and 5 change places, as with labels in another order."""
    order = np.arange(len(CLASSES))
    order[[2, 5]] = 5, 2
    return logits[:, order]


def with_evidence(bundle: Bundle, folder: Path, answers: Ledger) -> Path:
    shutil.copytree(bundle.path, folder)
    (folder / LEDGER).write_bytes(answers.to_bytes())
    return folder


def test_every_image_gets_the_recorded_decisions(bundle, data):
    exit_code, report, stderr = verify(bundle, data)
    assert exit_code == 0, stderr
    n = len(CLASSES) * NUM_PER_CLASS
    assert (report["n"], report["num_equal"], report["num_checkpoint_top1"]) == (n, n, n)
    assert (report["artefact"], report["model_id"]) == ("model.onnx", bundle.id)
    assert (report["num_ties"], report["differing"]) == (0, [])


def test_a_server_that_swaps_two_classes_is_found_out_image_by_image(bundle, data, ledger):
    exit_code, report, stderr = verify(bundle, data, swap_two)
    assert exit_code == 3, stderr
    files = open_split(data, "val", bundle.classes).files
    # Only where both or none of the two are among the five, and neither is the best, all is right.
    wrong = [
        file
        for file, top5 in zip(files, ledger.top5.tolist(), strict=True)
        if top5[0] in (2, 5) or len({2, 5} & set(top5)) == 1
    ]
    assert 0 < len(wrong) < len(files)
    assert report["differing"] == wrong
    assert report["num_equal"] == len(files) - len(wrong)
    assert f"{len(wrong)} of {len(files)} images get other decisions" in stderr


def test_a_server_that_is_wrong_only_under_load_is_found_out(bundle, data):
    def of_many(logits):
        return logits if len(logits) == 1 else np.roll(logits, 1, axis=0)

    exit_code, report, _ = verify(bundle, data, of_many)
    assert exit_code == 3
    assert report["differing"]


@pytest.mark.parametrize("tamper", [np.zeros_like, np.negative])
def test_probabilities_that_tell_nothing_are_no_ties(bundle, data, tamper):
    """All equal as served, but not by the record."""
    exit_code, report, _ = verify(bundle, data, tamper)
    assert exit_code == 3
    assert report["num_ties"] == 0


@pytest.mark.parametrize("mask", [0.0, -1e4, -1e9])
def test_a_masked_class_does_not_hide_that_the_images_are_shifted(data, tmp_path, mask):
    masked = judged_bundle(tmp_path / "masked", data, mask)
    assert verify(masked, data)[0] == 0
    exit_code, report, _ = verify(masked, data, shift=12)
    assert exit_code == 3
    assert len(report["differing"]) > len(CLASSES) * NUM_PER_CLASS / 4


def test_near_ties_of_the_record_may_fall_the_other_way(bundle, data, ledger, tmp_path):
    """Evidence that another machine wrote: for the first image two classes nearly tie."""
    limit = TIES["fp32"] * ledger.typical_margin
    top5, logits = ledger.top5.copy(), ledger.top5_logits.copy()
    top5[:2, :2] = top5[:2, 1::-1]  # the second best comes first
    logits[0, 1] = logits[0, 0] - 0.9 * limit
    logits[1, 1] = logits[1, 0] - 1.1 * limit
    evidence = with_evidence(bundle, tmp_path / "e", replace(ledger, top5=top5, top5_logits=logits))
    exit_code, report, _ = verify(bundle, data, evidence=evidence)
    assert (exit_code, report["num_ties"]) == (3, 1)
    assert report["differing"] == [open_split(data, "val", bundle.classes).files[1]]


def test_another_fifth_class_is_no_tie_unless_it_is_served_so(bundle, data, ledger, tmp_path):
    top5 = ledger.top5.copy()
    absent = [c for c in range(len(CLASSES)) if c not in top5[0]]
    top5[0, 4] = absent[-1]  # its logit is recorded, what came sixth is not
    evidence = with_evidence(bundle, tmp_path / "e", replace(ledger, top5=top5))
    exit_code, report, _ = verify(bundle, data, evidence=evidence)
    assert (exit_code, len(report["differing"])) == (3, 1)


def test_evidence_that_lacks_images_or_is_not_there_is_said(bundle, data, ledger, tmp_path):
    short = with_evidence(bundle, tmp_path / "short", ledger.take([0, 1, 2]))
    exit_code, _, stderr = verify(bundle, data, evidence=short)
    assert exit_code == 2
    assert "lacks 37 of the 40 images" in stderr
    (short / LEDGER).unlink()
    exit_code, _, stderr = verify(bundle, data, evidence=short)
    assert exit_code == 2
    assert "no answers of model.onnx in it" in stderr


@pytest.mark.parametrize(
    ("backend", "is_new", "expected"),
    [
        ("onnxruntime-cpu", True, "model.int8-cpu.onnx"),
        ("onnxruntime-cuda", True, "model.int8-trt.onnx"),
        ("onnxruntime-cpu", False, "model.int8-trt.onnx"),  # only where it was asked for
        ("tensorrt", True, "model.int8.plan"),
    ],
)
def test_of_two_int8_files_the_server_runs_the_one_whose_evidence_it_shows(
    bundle, backend, is_new, expected
):
    [fp32] = bundle.manifest.artifacts
    names = ("model.int8-cpu.onnx", "model.int8-trt.onnx", "model.int8.plan")
    artifacts = [
        msgspec.structs.replace(
            fp32,
            file=name,
            precision="int8",
            format="tensorrt" if name.endswith("plan") else "onnx",
            parity=msgspec.structs.replace(
                fp32.parity,
                n=2000 + i,
                ran_on="tensorrt" if name.endswith("plan") else backend.replace("tensorrt", "cuda"),
            ),
        )
        for i, name in enumerate(names)
    ]
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=[fp32, *artifacts])
    shown = fp32.parity if is_new else artifacts[names.index(expected)].parity
    model = Model(
        precision="int8", backend=backend, parity_json=msgspec.json.encode(shown).decode()
    )
    assert served_artifact(Bundle(bundle.path, manifest), model)[0].file == expected
    with pytest.raises(BundleError, match="no fp16 artefact for"):
        served_artifact(Bundle(bundle.path, manifest), Model(precision="fp16", parity_json="null"))


def test_of_an_artefacts_verdicts_the_servers_own_kind_of_processor_counts(bundle):
    [fp32] = bundle.manifest.artifacts
    [row] = fp32.known
    rows = [
        msgspec.structs.replace(
            row, instruction_set=name, parity=msgspec.structs.replace(row.parity, machine=name)
        )
        for name in ("amx", "avx2")
    ]
    judged = msgspec.structs.replace(fp32, parity=rows[0].parity, evidence=rows)
    manifest = msgspec.structs.replace(bundle.manifest, artifacts=[judged])
    for row in rows:
        shown = msgspec.json.encode(row.parity).decode()
        model = Model(precision="fp32", backend="onnxruntime-cpu", parity_json=shown)
        assert served_artifact(Bundle(bundle.path, manifest), model) == (judged, row)
        kind = f"onnxruntime-cpu.{row.instruction_set}"
        assert judged.ledger(row) == f"model.onnx.{kind}{LEDGER_SUFFIX}"
