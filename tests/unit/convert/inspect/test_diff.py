"""On which images two models differ: table, JSON and pictures, from ledgers alone."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny_bundle import CLASSES, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.convert.inspect.contact_sheet import write_sheet
from irv2.convert.inspect.diff import load_model_ledger
from irv2.data.dataset import open_split
from irv2.data.hashes import hash_files
from irv2.data.shard_writer import write_shards
from irv2.errors import BundleError, DataError
from irv2.images.contact_sheet import LINE, SIDE
from irv2.ledger import Ledger, Predictions
from irv2.manifest import LEDGER_SUFFIX, MANIFEST, read_manifest
from irv2.measures.difference import ModelLedger, diff
from irv2.system.files import file_sha256


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images of the tiny bundle's first two classes; red, green and blue twice."""
    for label, name in enumerate(CLASSES[:2]):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        for i in range(3):
            pixels = np.zeros((20 + 10 * i, 40, 3), np.uint8)
            pixels[..., i] = 200 + label
            Image.fromarray(pixels).save(tmp_path / "data" / "val" / name / f"{i}.png")
    return tmp_path / "data"


def answers(data: Path, best: list[int], margin: float = 1.0) -> bytes:
    """A ledger that answers `best`, each with a margin that grows with its place."""
    folder = open_split(data, "val", CLASSES)
    logits = np.eye(len(CLASSES), dtype=np.float32)[best] * margin
    logits *= 1 + np.arange(len(best), dtype=np.float32)[:, None]
    ledger = Predictions(folder.files, tuple(hash_files(folder)), folder.labels, logits)
    return Ledger.from_predictions(ledger).to_bytes()


@pytest.fixture
def ledgers(data: Path, tmp_path: Path) -> tuple[str, str]:
    """A is right but for image 5; B loses image 1, gains image 5, and is right elsewhere."""
    (tmp_path / "a.npz").write_bytes(answers(data, [0, 0, 0, 1, 1, 2]))
    (tmp_path / "b.npz").write_bytes(answers(data, [0, 7, 0, 1, 1, 1]))
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")


def test_lost_and_gained_images_are_listed_the_surest_first(ledgers, data):
    found = diff(*map(load_model_ledger, ledgers), data)
    assert (found.n, found.num_only_a, found.num_only_b) == (6, 0, 0)
    rows = [(row.file, row.label, row.a, row.b, row.change) for row in found.rows]
    assert rows == [
        (data / "val/class 1/2.png", "1", "2", "1", "gained"),
        (data / "val/class 0/1.png", "0", "0", "7", "lost"),
    ]
    assert [row.margin_a for row in found.rows] == [6, 2]


def test_a_model_does_not_differ_from_itself(ledgers):
    found = diff(load_model_ledger(ledgers[0]), load_model_ledger(ledgers[0]))
    assert found.rows == []
    assert "0 of 6 images have another best class" in found.to_text()


def test_artefacts_of_a_bundle_are_named_by_their_file_and_give_class_names(tmp_path, data):
    path = write_tiny_bundle(tmp_path / "b")
    manifest = read_manifest(path / MANIFEST)
    contents = {
        f"model.onnx{LEDGER_SUFFIX}": answers(data, [0, 0, 0, 1, 1, 2]),
        f"model.int8-cpu.onnx{LEDGER_SUFFIX}": answers(data, [0, 7, 0, 1, 1, 2]),
        "reference.npz": answers(data, [0, 0, 0, 1, 1, 1]),
    }
    for name, content in contents.items():
        (path / name).write_bytes(content)
    files = {name: file_sha256(path / name) for name in contents}
    Bundle(path, manifest).with_manifest(msgspec.structs.replace(manifest, files=files))
    onnx, int8, reference = (
        load_model_ledger(str(path) + name) for name in ("", ":model.int8-cpu.onnx", ":reference")
    )
    [row] = diff(onnx, int8).rows
    assert (row.label, row.a, row.b, row.file) == ("class 0", "class 0", "class 7", None)
    assert [row.change for row in diff(reference, onnx).rows] == ["lost"]
    with pytest.raises(
        BundleError, match=r"no answers of model\.plan in it; expected model\.onnx or "
    ):
        load_model_ledger(f"{path}:model.plan")


def test_a_ledger_of_more_classes_than_a_bundles_is_refused_in_either_order(ledgers):
    many = load_model_ledger(ledgers[0])
    ledger = replace(many.ledger, top5=many.ledger.top5 % 2)
    few = ModelLedger(name="few", ledger=ledger, classes=CLASSES[:2])
    for pair in ((few, many), (many, few)):
        with pytest.raises(DataError, match="they have other classes; expected the same ones"):
            diff(*pair)


def test_images_that_one_side_has_not_answered_are_counted_and_left_out(ledgers, data, tmp_path):
    all_answers = Ledger.load(Path(ledgers[1]))
    (tmp_path / "few.npz").write_bytes(all_answers.take([1, 2]).to_bytes())
    found = diff(load_model_ledger(ledgers[0]), load_model_ledger(str(tmp_path / "few.npz")))
    assert (found.n, found.num_only_a, found.num_only_b, len(found.rows)) == (2, 4, 0, 1)
    assert "not compared: 4 only in A, 0 only in B" in found.to_text()
    (tmp_path / "none.npz").write_bytes(all_answers.take([]).to_bytes())
    with pytest.raises(DataError, match="no image in common"):
        diff(load_model_ledger(ledgers[0]), load_model_ledger(str(tmp_path / "none.npz")))


def test_sheet_shows_the_pictures_themselves(ledgers, data, tmp_path):
    write_sheet(diff(*map(load_model_ledger, ledgers), data), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    left, top = 8 + SIDE // 2, 2 * LINE + 8 + SIDE // 2
    assert pixels[top, left].tolist() == [0, 0, 201]  # class 1's third image is blue
    assert pixels[top, left + SIDE + 8].tolist() == [0, 200, 0]
    assert (pixels == (0, 109, 44)).all(-1).any()  # gained, in green


def test_sheet_shows_pictures_out_of_shards(ledgers, data, tmp_path):
    write_shards(data, tmp_path / "shards", 10_000)
    for name, root in (("files", data), ("shards", tmp_path / "shards")):
        write_sheet(diff(*map(load_model_ledger, ledgers), root), tmp_path / f"{name}.png")
    assert (tmp_path / "files.png").read_bytes() == (tmp_path / "shards.png").read_bytes()


def test_sheet_without_any_file_is_refused(ledgers, tmp_path):
    with pytest.raises(DataError, match="none of the 2 differing images was found"):
        write_sheet(diff(*map(load_model_ledger, ledgers)), tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_program_prints_one_object_and_draws(ledgers, data, tmp_path):
    command = [
        sys.executable,
        "-m",
        "irv2",
        "diff",
        *ledgers,
        "--data",
        str(data),
        "--json",
        "-o",
        str(tmp_path / "sheet.png"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(result.stdout)
    assert (found["n"], found["num_different"]) == (6, 2)
    assert found["images"][1]["file"].endswith("val/class 0/1.png")
    assert (tmp_path / "sheet.png").stat().st_size > 0
