"""Export of a real, small network: the bundle, its ONNX file, and what the gate rejects."""

import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conversions import convert
from exported import BUNDLE_FILES, LEDGERS, Exported, tree
from in_process import irv2
from process_output import read_line
from project import ROOT
from tiny_checkpoint import CLASSES, NUM_PER_CLASS, make_checkpoint

from irv2.bundle import Bundle
from irv2.checkpoint import Checkpoint
from irv2.convert.candidate import Candidate, ExportOptions, make_candidate
from irv2.convert.export import export, judge_and_publish
from irv2.convert.inspect.diff import load_model_ledger
from irv2.convert.onnx import float32
from irv2.convert.verify import verify
from irv2.data.dataset import open_split
from irv2.images.preprocess import Preprocess
from irv2.measures.difference import diff
from irv2.model.fold import fold
from irv2.model.paper import Normalized
from irv2.runners.choose import open_best
from irv2.runners.onnx import OnnxRunner
from irv2.runners.openvino import OpenVinoRunner
from irv2.system.files import file_sha256
from irv2.system.machine import describe_machine

NUM_IMAGES = len(CLASSES) * NUM_PER_CLASS


@pytest.fixture(scope="module")
def checkpoint(exported: Exported) -> Checkpoint:
    return Checkpoint.load(exported.checkpoint_path)


def random_images(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, 75, 75, 3), dtype=np.uint8)


def test_bundle_is_whole_and_its_artefact_has_passed(exported, checkpoint):
    bundle = Bundle.open(exported.bundle)
    assert set(tree(exported.bundle)) == BUNDLE_FILES
    [artifact] = bundle.manifest.artifacts
    assert (artifact.file, artifact.format, artifact.precision) == ("model.onnx", "onnx", "fp32")
    assert artifact.max_batch == 16
    parity = artifact.parity
    assert (parity.verdict, parity.basis, parity.n) == ("passed", "identical", NUM_IMAGES)
    assert parity.agreement == 100
    # The checkpoint knows its images: agreeing with it is worth something.
    assert parity.top1.reference_error == parity.top1.error < 10
    source = bundle.manifest.source
    assert source.checkpoint_sha256 == artifact.built_from == file_sha256(exported.checkpoint_path)
    assert (source.setting, source.epoch) == ("2", 3)
    assert bundle.classes == CLASSES
    assert bundle.preprocess == checkpoint.preprocess
    assert artifact.built_with["machine"] == parity.machine == describe_machine()


def test_nothing_is_left_beside_the_bundle(exported):
    names = {path.name for path in exported.bundle.parent.iterdir()}
    assert names == {"data", "best.pt", "best.bundle"}


def test_published_bundle_is_served_from_here(exported):
    artifact, _, runner, _ = open_best(exported.bundle, Bundle.open(exported.bundle).artifacts)
    with runner:
        assert artifact.file == "model.onnx"
        assert runner.run(random_images(3)).shape == (3, len(CLASSES))


@pytest.mark.parametrize("num", [1, 2, 7, 16])
def test_onnx_takes_uint8_images_in_any_number_and_gives_the_networks_logits(
    exported, checkpoint, num
):
    images = random_images(num, seed=num)
    config = checkpoint.preprocess
    network = Normalized(checkpoint.build_model(), config.mean, config.std)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    logits = OnnxRunner(exported.bundle / "model.onnx").run(images)
    assert logits.dtype == np.float32
    # Float32 sums in another order, through some forty layers.
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_onnx_is_one_plain_file_without_batch_norm_or_notes_about_this_machine(exported):
    path = exported.bundle / "model.onnx"
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["logits"]
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["N", 75, 75, 3]
    operators = [node.op_type for node in model.graph.node]
    assert "BatchNormalization" not in operators
    assert operators.count("Mul") == 1  # the normalisation's; residual scales are folded
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert describe_machine().encode() not in path.read_bytes()
    assert str(ROOT).encode() not in path.read_bytes()


def test_onnx_says_what_it_is(exported, checkpoint):
    metadata = OnnxRunner(exported.bundle / "model.onnx").metadata
    assert json.loads(metadata["classes"]) == CLASSES
    stated = Preprocess.from_json(json.loads(metadata["preprocess"]), "metadata")
    assert stated == checkpoint.preprocess
    assert metadata["preprocess_sha256"] == checkpoint.preprocess.sha256
    assert metadata["checkpoint_sha256"] == file_sha256(exported.checkpoint_path)
    assert metadata["arch"] == "inception_resnet_v2"


def test_folding_keeps_the_function_and_the_checkpoints_own_network(checkpoint):
    model = checkpoint.build_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold(model)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(2, 3, 75, 75, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = model(images), folded(images)
    # Folded in float64, run in float32: rounding only.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_same_checkpoint_gives_the_same_bytes(exported, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(float32, "_export", convert)
    float32.write_onnx(checkpoint, file_sha256(exported.checkpoint_path), tmp_path / "again.onnx")
    assert file_sha256(tmp_path / "again.onnx") == file_sha256(exported.bundle / "model.onnx")


class Replacer(logging.Handler):
    """Replaces a file as soon as an export says that it converts what it has read from there."""

    def __init__(self, path: Path, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.path, self.checkpoint = path, checkpoint

    def emit(self, record: logging.LogRecord) -> None:
        self.checkpoint.save(self.path)


def test_a_bundle_names_the_checkpoint_that_was_loaded_though_another_has_its_place_by_now(
    exported, checkpoint, tmp_path, caplog
):
    caplog.set_level("INFO", "irv2")
    path = tmp_path / "best.pt"
    checkpoint.save(path)
    loaded = file_sha256(path)
    replacer = Replacer(path, make_checkpoint(exported.data, seed=1))
    logger = logging.getLogger("irv2.convert.candidate")
    logger.addHandler(replacer)
    try:
        report = export(path, exported.data, None, ExportOptions(precisions=("fp32",)))
    finally:
        logger.removeHandler(replacer)
    assert file_sha256(path) != loaded
    assert report.manifest.source.checkpoint_sha256 == loaded
    assert "fp32 passed: identical" in report.lines["model.onnx"]


def without_normalisation(checkpoint: Checkpoint, data: Path) -> Checkpoint:
    identity = Preprocess(resize=80, crop=75, mean=(0, 0, 0), std=(1 / 255,) * 3)
    return replace(checkpoint, preprocess=identity)


def with_other_weights(checkpoint: Checkpoint, data: Path) -> Checkpoint:
    other = make_checkpoint(data, seed=1).state_dict
    last = {name: value for name, value in checkpoint.state_dict.items() if "classifier" in name}
    return replace(checkpoint, state_dict={**other, **last})


def with_classes_permuted(checkpoint: Checkpoint, data: Path) -> Checkpoint:
    weights = dict(checkpoint.state_dict)
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name].roll(1, dims=0)
    return replace(checkpoint, state_dict=weights)


@pytest.mark.parametrize(
    "spoil", [without_normalisation, with_other_weights, with_classes_permuted]
)
def test_a_wrong_export_is_rejected_and_the_bundle_there_stays(
    exported, checkpoint, tmp_path, spoil
):
    out = tmp_path / "best.bundle"
    out.mkdir()
    for name in tree(exported.bundle):
        (out / name).write_bytes((exported.bundle / name).read_bytes())
    before = tree(out)
    folder = tmp_path / "candidate"
    folder.mkdir()
    sha256 = file_sha256(exported.checkpoint_path)
    options, images = ExportOptions(precisions=("fp32",)), open_split(exported.data, "val", CLASSES)
    wrong = make_candidate(spoil(checkpoint, exported.data), sha256, folder, options, images)
    candidate = Candidate(
        checkpoint=checkpoint, checkpoint_sha256=sha256, folder=folder, artifacts=wrong.artifacts
    )
    report = judge_and_publish(candidate, images, out, options)
    assert report.failed == ["model.onnx"]
    [artifact] = report.manifest.artifacts
    assert artifact.parity.verdict == "failed"
    assert artifact.parity.top1.lost > NUM_IMAGES / 2
    assert tree(out) == before
    text = (tmp_path / "best.bundle.rejected" / "parity.md").read_text()
    assert "model.onnx: fp32 failed: " in text
    rejected = tmp_path / "best.bundle.rejected"
    assert set(tree(rejected)) == {"parity.md", "reference.npz", *LEDGERS}
    files = ("reference.npz", artifact.ledger(artifact.evidence[0]))
    named = [load_model_ledger(str(rejected / file)) for file in files]
    lost = sum(row.change == "lost" for row in diff(*named).rows)
    assert lost == artifact.parity.top1.lost
    assert {path.name for path in tmp_path.iterdir()} == {
        "best.bundle",
        "best.bundle.rejected",
        "candidate",
    }


def test_a_backend_that_fails_alone_is_named_and_costs_neither_bundle_nor_self_test(
    exported, tmp_path, monkeypatch
):
    run = OpenVinoRunner.run
    monkeypatch.setattr(
        OpenVinoRunner, "run", lambda runner, images: np.roll(run(runner, images), 1, axis=1)
    )
    options = ExportOptions(precisions=("fp32",))
    report = export(exported.checkpoint_path, exported.data, tmp_path / "b", options)
    assert report.failed == []
    assert "model.onnx is not served on openvino-cpu: fp32 failed" in report.to_table()
    assert set(tree(tmp_path / "b")) == BUNDLE_FILES
    bundle = Bundle.open(tmp_path / "b")
    assert [row.parity.verdict for row in bundle.artifacts[0].evidence] == ["passed", "failed"]
    with open_best(bundle.path, bundle.artifacts).runner as runner:
        assert runner.backend == "onnxruntime-cpu"


def test_program_exits_3_and_publishes_nothing_when_the_gate_is_not_met(exported, tmp_path):
    # Float32 of another order of sums is never identical; so few images can't show 0.1 points.
    checkpoint = Checkpoint.load(exported.checkpoint_path)
    weights = dict(checkpoint.state_dict)
    weights["classifier.weight"] = weights["classifier.weight"].clone()
    weights["classifier.weight"][0, 0] = float("nan")
    replace(checkpoint, state_dict=weights).save(tmp_path / "broken.pt")
    result = irv2("export", tmp_path / "broken.pt", "--data", exported.data, "--precision", "fp32")
    assert result.returncode == 3, result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "not finite" in result.stdout
    assert not (tmp_path / "broken.bundle").exists()
    assert (tmp_path / "broken.bundle.rejected" / "parity.md").is_file()


def test_program_prints_one_object_replaces_a_bundle_and_forgets_an_old_rejection(
    exported, tmp_path
):
    out = tmp_path / "mine"
    (tmp_path / "mine.rejected").mkdir()
    for name in ("parity.md", "reference.npz", "model.int8-cpu.onnx.ledger.npz"):
        (tmp_path / "mine.rejected" / name).write_text("an earlier try")
    place = ("--data", exported.data, "--out", out)
    args = ("export", exported.checkpoint_path, *place, "--precision", "fp32", "--json")
    result = irv2(*args, "--limit", 12, "--max-batch", 4)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert (summary["passed"], summary["bundle"]) == (True, str(out))
    assert summary["artifacts"][0]["parity"]["n"] == 12
    assert Bundle.open(out).manifest.artifacts[0].max_batch == 4
    assert not (tmp_path / "mine.rejected").exists()
    again = irv2(*args, "--triton", tmp_path / "repository")
    assert again.returncode == 0, again.stderr
    assert Bundle.open(out).manifest.artifacts[0].parity.n == NUM_IMAGES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "repository"]
    model = tmp_path / "repository" / "irv2-onnx" / "1" / "model.onnx"
    assert model.read_bytes() == (out / "model.onnx").read_bytes()


def test_a_signal_during_the_onnx_step_ends_the_export_with_one_line(exported, tmp_path):
    options = ["--data", str(exported.data), "--precision", "fp32", "--out", str(tmp_path / "b")]
    command = [sys.executable, "-m", "irv2", "export", str(exported.checkpoint_path), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while read_line(process.stderr) != "export: model.onnx\n":
            assert process.poll() is None
        time.sleep(1)  # into the exporter, which takes some seconds
        process.send_signal(signal.SIGTERM)
        assert process.stderr.read() == "error: stopped by SIGTERM\n"
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


def test_report_says_what_the_images_can_certify(exported):
    text = (exported.bundle / "parity.md").read_text()
    assert f"identical on all {NUM_IMAGES} images" in text
    assert f"These {NUM_IMAGES} images can't show a loss below 6.05 points (95 %)" in text
    assert "0.1 / 0.25 / 0.5 / 1.0 points takes at least 2995 / 1197 / 598 / 299 images" in text
    assert "With 6 classes top-5 is nearly empty as evidence" in text
    assert "better than chance" not in text
    assert exported.report.to_table().count("identical on all") == 1


def test_images_are_counted_once_however_often_they_lie_there(exported, tmp_path):
    for name in CLASSES:
        folder = tmp_path / "data" / "val" / name
        folder.mkdir(parents=True)
        for i in range(10):
            shutil.copy(exported.data / "val" / name / "0.png", folder / f"{i}.png")
    options = ExportOptions(precisions=("fp32",), max_batch=4)
    report = export(exported.checkpoint_path, tmp_path / "data", tmp_path / "b", options)
    [artifact] = report.manifest.artifacts
    assert (artifact.parity.n, artifact.parity.distinct, artifact.parity.copies) == (6, 6, 54)
    assert "54 of 60 images are copies of others" in report.to_markdown()
    again = verify(tmp_path / "b", tmp_path / "data")
    assert (again.manifest.artifacts[0].parity.n, again.failed) == (6, [])
    assert "54 of 60 images are copies of others" in again.to_markdown()


@pytest.fixture(scope="module")
def guessing(exported, checkpoint, tmp_path_factory) -> tuple[dict, Path]:
    """What the program says of a checkpoint that knows nothing, with a gate of the user's own."""
    folder = tmp_path_factory.mktemp("guessing")
    with_classes_permuted(checkpoint, exported.data).save(folder / "best.pt")
    gate = ("--tolerance-top1", 7.5, "--tolerance-top5", 12, "--confidence", 0.9, "--max-batch", 4)
    options = ("--data", exported.data, "--precision", "fp32", *gate, "--accept-chance", "--json")
    result = irv2("export", folder / "best.pt", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), folder / "best.bundle"


def test_a_checkpoint_no_better_than_chance_is_flagged_in_every_report(guessing):
    summary, bundle = guessing
    flag = "of 48 images, which is not shown to be better than chance (16.7 %)"
    assert any(flag in remark for remark in summary["remarks"])
    assert flag in (bundle / "parity.md").read_text()
    assert summary["artifacts"][0]["parity"]["at_chance"]
    assert "which was accepted" in summary["artifacts"][0]["line"]


def test_a_checkpoint_no_better_than_chance_is_published_only_if_asked(
    guessing, exported, tmp_path
):
    checkpoint_path = guessing[1].with_name("best.pt")
    options = ("--data", exported.data, "--precision", "fp32", "--out", tmp_path / "b")
    line = one_line_error(irv2("export", checkpoint_path, *options), 3)
    assert "not shown to be better than chance (16.7 %)" in line
    assert "--accept-chance; not published" in line
    assert {path.name for path in tmp_path.iterdir()} == {"b.rejected"}


def test_the_gates_options_are_what_it_judges_by(guessing):
    summary, bundle = guessing
    parity = summary["artifacts"][0]["parity"]
    assert parity["confidence"] == 0.9
    points = [parity[name]["tolerance_points"] for name in ("top1", "top5")]
    assert points == [7.5, 12]
    # At 90 % none lost of 48 is a loss below 1 - 0.1^(1/48).
    assert parity["top1"]["upper_loss_points"] == pytest.approx(100 * (1 - 0.1 ** (1 / 48)))
    assert "can't show a loss below 4.68 points (90 %)" in (bundle / "parity.md").read_text()


def one_line_error(result: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert result.returncode == exit_code, result.stderr
    assert "Traceback" not in result.stderr
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_data_that_does_not_fit_is_refused_before_anything_is_converted(exported, tmp_path):
    (tmp_path / "val" / "orange").mkdir(parents=True)
    (tmp_path / "val" / "orange" / "0.png").write_bytes(
        (exported.data / "val" / "red" / "0.png").read_bytes()
    )
    result = irv2("export", exported.checkpoint_path, "--data", tmp_path, "--out", tmp_path / "b")
    assert "orange" in one_line_error(result, 2)
    assert not (tmp_path / "b").exists()


def test_a_precision_that_is_not_there_is_refused_in_one_line(exported, tmp_path):
    options = ("--precision", "fp32,fp8", "--data", exported.data, "--out", tmp_path / "b")
    result = irv2("export", exported.checkpoint_path, *options)
    assert "fp8" in one_line_error(result, 2)


def test_a_place_taken_by_something_else_is_left_alone(exported, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = irv2("export", exported.checkpoint_path, "--data", exported.data, "--out", tmp_path)
    assert "is no bundle" in one_line_error(result, 2)
    result = irv2("export", exported.checkpoint_path, "--triton", tmp_path)
    assert "is there and not empty; expected a new folder" in one_line_error(result, 2)
    assert tree(tmp_path).keys() == {"notes.txt"}


def test_inspect_shows_the_bundle_and_names_a_file_that_changed(exported, tmp_path):
    shown = irv2("inspect", exported.bundle)
    assert shown.returncode == 0, shown.stderr
    assert "all hold" in shown.stdout
    assert describe_machine() in shown.stdout
    copy = tmp_path / "copy.bundle"
    copy.mkdir()
    for name in tree(exported.bundle):
        (copy / name).write_bytes((exported.bundle / name).read_bytes())
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    result = irv2("inspect", copy, "--json")
    assert "model.onnx" in one_line_error(result, 2)
    table = irv2("inspect", copy).stdout
    assert re.search(r"^model\.onnx .* sha256 .*: the file was changed$", table, re.MULTILINE)
    assert re.search(r"^parity\.md .* ok$", table, re.MULTILINE)
    assert list(json.loads(result.stdout)["problems"]) == [str(copy / "model.onnx")]
