"""The checkpoint's answers on file: what is kept, how images are found again."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irv2.convert.gate.reference import Reference
from irv2.data.dataset import ImageFolder, open_split
from irv2.errors import BundleError, DataError
from irv2.ledger import Predictions
from irv2.system.files import file_sha256


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes of four images of one colour each, all different."""
    root = tmp_path / "data"
    for label, name in enumerate("abc"):
        (root / "val" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (8, 8), (80 * label, 60 * i, 7)).save(root / "val" / name / f"{i}.png")
    return root


def reference_on(folder: ImageFolder, num_classes: int = 7) -> Reference:
    hashes = tuple(file_sha256(folder.path(i)) for i in range(len(folder)))
    logits = np.random.default_rng(0).normal(size=(len(folder), num_classes)).astype(np.float32)
    return Reference.from_predictions(Predictions(folder.files, hashes, folder.labels, logits))


def saved(reference: Reference, folder: Path) -> Path:
    path = folder / "reference.npz"
    path.write_bytes(reference.to_bytes())
    return path


def test_saved_answers_come_back_without_pickle(data, tmp_path):
    reference = reference_on(open_split(data, "val"))
    path = saved(reference, tmp_path)
    loaded = Reference.load(path)
    assert loaded.sha256 == reference.sha256
    for name in ("labels", "top5", "top5_logits", "margins", "top1_right", "top5_right"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(reference, name))
    assert loaded.max_abs_logit == reference.max_abs_logit
    assert loaded.data_sha256 == reference.data_sha256
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].dtype != object for name in arrays.files)


def test_margin_is_the_distance_from_the_best_logit_to_the_second(data):
    reference = reference_on(open_split(data, "val"))
    ordered = np.sort(reference.logits, axis=1)
    np.testing.assert_array_equal(reference.margins, ordered[:, -1] - ordered[:, -2])


@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_fewer_than_five_classes_keep_what_there_is(data, tmp_path, num_classes):
    reference = reference_on(open_split(data, "val"), num_classes)
    assert Reference.load(saved(reference, tmp_path)).top5.shape == (12, num_classes)


def test_logit_difference_is_over_all_classes_at_export_and_over_the_five_best_later(
    data, tmp_path
):
    reference = reference_on(open_split(data, "val"))
    logits = reference.logits.copy()
    worst = reference.logits.argmin(axis=1)
    logits[np.arange(len(logits)), worst] += 3  # none of the five best of seven
    logits[0, reference.top5[0, 0]] += 1
    assert reference.max_abs_difference(logits) == pytest.approx(3, rel=1e-6)
    loaded = Reference.load(saved(reference, tmp_path))
    assert loaded.max_abs_difference(logits) == pytest.approx(1, rel=1e-6)


def test_identity_of_the_data_depends_on_contents_and_labels_alone(data):
    reference = reference_on(open_split(data, "val"))
    order = np.random.default_rng(1).permutation(12).tolist()
    shuffled = Reference(
        sha256=tuple(reference.sha256[i] for i in order),
        labels=reference.labels[order],
        top5=reference.top5[order],
        top5_logits=reference.top5_logits[order],
        margins=reference.margins[order],
        max_abs_logit=1.0,
    )
    assert shuffled.data_sha256 == reference.data_sha256
    other = Reference.from_predictions(
        Predictions((), reference.sha256, np.roll(reference.labels, 1), reference.logits)
    )
    assert other.data_sha256 != reference.data_sha256


def test_images_are_found_by_content_under_new_names_among_others(data):
    reference = reference_on(open_split(data, "val").first(6))
    for path in sorted(data.glob("val/*/*.png"), reverse=True):
        path.rename(path.with_name(f"renamed-{9 - int(path.stem)}.png"))
    images, matched, _ = reference.find_images(open_split(data, "val"))
    assert len(images) == 6
    hashes = tuple(file_sha256(images.path(i)) for i in range(6))
    assert hashes == matched.sha256
    np.testing.assert_array_equal(images.labels, matched.labels)
    rows = {sha: row.tolist() for sha, row in zip(reference.sha256, reference.top5, strict=True)}
    assert [rows[sha] for sha in hashes] == matched.top5.tolist()


def test_copies_are_passed_over_and_counted_also_where_an_older_file_holds_them(data):
    shutil.copy(data / "val/a/0.png", data / "val/a/copy.png")
    reference = reference_on(open_split(data, "val"))
    assert len(reference) == 13
    images, matched, num_copies = reference.find_images(open_split(data, "val"))
    assert (len(images), len(matched), num_copies) == (12, 12, 1)
    (data / "val/a/copy.png").unlink()
    assert reference.find_images(open_split(data, "val"))[2] == 0
    (data / "val/a/0.png").unlink()
    with pytest.raises(DataError, match="1 of the 12 images"):
        reference.find_images(open_split(data, "val"))


def test_an_image_under_another_class_is_not_the_same(data):
    reference = reference_on(open_split(data, "val"))
    (data / "val/a/0.png").rename(data / "val/b/moved.png")
    with pytest.raises(DataError, match="1 of the 12 images that the bundle was judged on"):
        reference.find_images(open_split(data, "val"))


def npz_of(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", npz_of(labels=np.zeros(3)), None],
    ids=["empty", "garbage", "arrays missing", "absent"],
)
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "reference.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"reference\.npz"):
        Reference.load(path)
