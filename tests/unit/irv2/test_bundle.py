"""Bundles: opened only when every hash holds, written whole or not at all."""

import errno
import io
import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny_bundle import CLASSES, SIDE, edit, refused, write_tiny_bundle
from unreadable import unreadable_paths

from irv2.bundle import Bundle
from irv2.errors import BundleError, ImageReason, UsageError
from irv2.images.preprocess import resize_and_crop
from irv2.manifest import MANIFEST, read_manifest
from irv2.results import top_k_scores
from irv2.runners.choose import open_best
from irv2.system.files import file_sha256


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle", max_batch=4)


def photos(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (60 + i, 90, 3), dtype=np.uint8) for i in range(count)]


def png(image_hwc: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image_hwc).save(stream, "PNG")
    return stream.getvalue()


def test_a_whole_bundle_opens_with_its_parts(bundle):
    opened = Bundle.open(str(bundle))
    assert opened.classes == CLASSES
    assert opened.preprocess.crop == SIDE
    assert opened.id == opened.manifest.id
    assert [problem for _, problem in opened.check()] == ["", "", ""]


def test_a_flipped_byte_in_a_model_is_noticed(bundle):
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    assert "model.onnx: sha256" in refused(bundle)
    assert "the file was changed" in refused(bundle)


def test_a_missing_model_is_named(bundle):
    (bundle / "model.onnx").unlink()
    assert "model.onnx: is missing" in refused(bundle)


def test_evidence_is_checked_too(bundle):
    (bundle / "parity.md").write_text("passed")
    manifest = read_manifest(bundle / MANIFEST)
    files = {"parity.md": file_sha256(bundle / "parity.md")}
    Bundle(bundle, manifest).with_manifest(msgspec.structs.replace(manifest, files=files))
    Bundle.open(bundle)
    (bundle / "parity.md").write_text("passed!")
    assert "parity.md: sha256" in refused(bundle)


def test_a_file_listed_twice_must_match_both_hashes(bundle):
    # Otherwise the list of evidence could excuse another model under the old identity.
    (bundle / "model.onnx").write_bytes(b"another model")
    sha256 = file_sha256(bundle / "model.onnx")
    edit(bundle, lambda m: m["files"].update({"model.onnx": sha256}))
    assert "model.onnx: sha256" in refused(bundle)


@pytest.mark.parametrize(
    "name", ["../model.onnx", "sub/../../model.onnx", "sub/model.onnx", "..", "."]
)
def test_a_path_out_of_the_bundle_is_refused(bundle, name):
    (bundle / "sub").mkdir()
    for folder in (bundle.parent, bundle / "sub"):
        (folder / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes())
    edit(bundle, lambda m: m["artifacts"][0].update(file=name))
    assert "lies outside the bundle" in refused(bundle) or "is missing" in refused(bundle)
    if "model" in name:
        assert "lies outside the bundle" in refused(bundle)


def test_an_absolute_path_is_refused(bundle):
    edit(bundle, lambda m: m["artifacts"][0].update(file="/etc/hostname"))
    with pytest.raises(BundleError, match="/etc/hostname: lies outside the bundle"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m["preprocess"].update(crop=74), "preprocessing hash"),
        (lambda m: m["preprocess"].update(sha256="0" * 64), "preprocessing hash 000000000000"),
        (lambda m: m["preprocess"].update(resampling="new"), "preprocessing not understood"),
        (lambda m: m["preprocess"].pop("mean"), "preprocessing not understood"),
    ],
)
def test_preprocessing_that_we_cannot_honour_is_refused(bundle, change, expected):
    edit(bundle, change)
    assert expected in refused(bundle)


def test_classify_takes_paths_bytes_and_arrays_and_answers_alike(bundle, tmp_path):
    [image] = photos(1)
    path = tmp_path / "photo.png"
    path.write_bytes(png(image))
    results = Bundle.open(bundle).classify([path, str(path), png(image), image], top_k=3)
    assert [len(result.scores) for result in results] == [3, 3, 3, 3]
    assert len({result.scores for result in results}) == 1
    assert results[0].error is None


def test_classify_gives_the_runners_answer_for_every_image_across_batches(bundle):
    opened = Bundle.open(bundle)
    images = photos(11)  # batches of 4, 4 and 3
    artifact, _, runner, _ = open_best(opened.path, opened.artifacts)
    assert (artifact.file, runner.max_batch) == ("model.onnx", 4)
    with runner:
        for image, result in zip(images, opened.classify(images), strict=True):
            [logits] = runner.run(resize_and_crop(image, opened.preprocess)[None])
            expected = top_k_scores(logits, CLASSES, 5)
            assert [s.label for s in result.scores] == [s.label for s in expected]
            # The engine may sum a batch of four in another order than one image.
            assert [s.probability for s in result.scores] == pytest.approx(
                [s.probability for s in expected], abs=1e-6
            )


def test_one_bad_image_fails_alone(bundle, tmp_path):
    first, last = photos(2)
    bad: list[Any] = [
        (b"", ImageReason.EMPTY),
        (b"text", ImageReason.NOT_AN_IMAGE),
        (png(first)[:300], ImageReason.TRUNCATED),
        (tmp_path / "gone.png", ImageReason.UNREADABLE),
        (tmp_path, ImageReason.UNREADABLE),
        (first[:, :, 0], ImageReason.BAD_PIXELS),
        (first.astype(np.float32), ImageReason.BAD_PIXELS),
        (first[:0], ImageReason.BAD_PIXELS),
        (np.zeros((9, 9, 4), np.uint8), ImageReason.BAD_PIXELS),
    ]
    opened = Bundle.open(bundle)
    results = opened.classify([first, *(image for image, _ in bad), last])
    assert [r.error.reason for r in results[1:-1] if r.error] == [reason for _, reason in bad]
    assert not any(result.scores for result in results[1:-1])
    alone = opened.classify([first]) + opened.classify([last])
    assert [results[0].scores, results[-1].scores] == [result.scores for result in alone]
    assert str(results[4].error).startswith(f"{tmp_path / 'gone.png'}: {os.strerror(errno.ENOENT)}")


def test_paths_that_no_file_can_have_fail_alone(bundle, tmp_path):
    paths, opened = unreadable_paths(tmp_path), Bundle.open(bundle)
    results = opened.classify([*paths, None, *photos(1)])
    reasons = [result.error and result.error.reason for result in results]
    assert reasons == [*[ImageReason.UNREADABLE] * len(paths), ImageReason.BAD_PIXELS, None]


def test_a_lone_image_is_one(bundle, tmp_path):
    [image] = photos(1)
    path = tmp_path / "photo.png"
    path.write_bytes(png(image))
    opened = Bundle.open(bundle)
    [expected] = opened.classify([image])
    assert [opened.classify(lone) for lone in (path, str(path), png(image), image)] == [
        [expected]
    ] * 4
    [result] = opened.classify(image[:, :, 0])
    assert result.error


def test_any_iterable_of_images_is_classified_in_batches(bundle):
    opened, images = Bundle.open(bundle), photos(11)
    expected = opened.classify(images)
    assert opened.classify(image for image in images) == expected
    same = np.stack([images[0]] * 5)
    assert [r.scores[0].label for r in opened.classify(same)] == [expected[0].scores[0].label] * 5


def test_what_a_generator_raises_comes_through(bundle):
    def camera():
        yield from photos(2)
        raise ZeroDivisionError("in the camera")

    with pytest.raises(ZeroDivisionError, match="in the camera"):
        Bundle.open(bundle).classify(camera())


@pytest.mark.parametrize("top_k", [-1, 2**32, 1.5, None])
def test_a_top_k_that_no_server_would_take_is_wrong_usage(bundle, top_k):
    with pytest.raises(UsageError, match=f"^top_k: {top_k}; expected a whole number from 0"):
        Bundle.open(bundle).classify(photos(1), top_k)


def test_a_bundle_is_opened_anew_in_another_process(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(bundle.parent)
    opened = Bundle.open(bundle.name)
    expected = opened.classify(photos(1))  # with an engine by now, which can't be pickled
    pickled = pickle.dumps(opened)
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).classify(photos(1)) == expected
    (bundle / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match=r"model\.onnx: sha256"):
        pickle.loads(pickled)


def test_nothing_but_bad_images_or_none_at_all_is_answered(bundle):
    opened = Bundle.open(bundle)
    assert opened.classify([]) == []
    assert [result.scores for result in opened.classify([b"", b"x"])] == [(), ()]


@pytest.mark.parametrize("verdict", [None, "failed", "too_few_images"])
def test_an_artefact_without_a_passed_verdict_is_never_run(tmp_path, verdict):
    bundle = write_tiny_bundle(tmp_path / "bundle", verdict=verdict)
    with pytest.raises(BundleError, match=r"nothing in it can be served here: model\.onnx"):
        Bundle.open(bundle).classify(photos(1))


def test_replacing_the_manifest_keeps_the_bundle_whole(bundle):
    opened = Bundle.open(bundle)
    artifact = msgspec.structs.replace(opened.manifest.artifacts[0], parity=None)
    opened.with_manifest(msgspec.structs.replace(opened.manifest, artifacts=[artifact]))
    assert Bundle.open(bundle).manifest.artifacts[0].parity is None
    assert Bundle.open(bundle).id == opened.id
    files = ["bundle.json", "model.onnx", "selftest.npz"]
    assert sorted(path.name for path in bundle.iterdir()) == files


def test_a_bundle_with_fewer_names_than_its_model_has_outputs_answers_nothing(tmp_path):
    bundle = Bundle.open(write_tiny_bundle(tmp_path / "b"))
    manifest = msgspec.structs.replace(bundle.manifest, classes=bundle.classes[:9])
    bundle.with_manifest(manifest.with_artifacts(bundle.artifacts))
    image = np.zeros((75, 75, 3), np.uint8)
    with pytest.raises(BundleError, match="gives 10 classes; expected 75 and 9"):
        Bundle.open(bundle.path).classify(image)
