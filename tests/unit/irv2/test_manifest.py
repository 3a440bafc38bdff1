"""bundle.json, and whatever may be wrong with it."""

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_bundle import edit, refused, write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import MANIFEST, bundle_id, manifest_json, read_manifest
from irv2.system.files import file_sha256


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path / "bundle", max_batch=4)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(bundle, data):
    whole = (bundle / MANIFEST).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    content = bytearray(whole)
    content[place] ^= 1 << data.draw(st.integers(0, 7))
    try:
        (bundle / MANIFEST).write_bytes(content)
        refused(bundle)
    finally:
        (bundle / MANIFEST).write_bytes(whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(id="0" * 64),
        lambda m: m["classes"].reverse(),
        lambda m: m["classes"].append("one more"),
        lambda m: m["artifacts"].append({**m["artifacts"][0], "file": "bundle.json"}),
    ],
)
def test_an_identity_that_does_not_match_the_contents_is_refused(bundle, change):
    edit(bundle, change)
    line = refused(bundle)
    assert "id " in line or "sha256" in line


def test_the_identity_covers_models_preprocessing_and_classes_but_no_evidence(bundle):
    manifest = read_manifest(bundle / "bundle.json")

    def changed(**fields: Any) -> str:
        artifact = msgspec.structs.replace(manifest.artifacts[0], **fields)
        return bundle_id([artifact], manifest.preprocess, manifest.classes)

    assert changed() == manifest.id
    assert changed(parity=None) == manifest.id
    assert changed(max_batch=1, gpu="another") == manifest.id
    assert changed(sha256="1" * 64) != manifest.id
    assert changed(file="other.onnx") != manifest.id
    other = {**manifest.preprocess, "sha256": "1" * 64}
    assert bundle_id(manifest.artifacts, other, manifest.classes) != manifest.id
    assert bundle_id(manifest.artifacts, manifest.preprocess, ["x"]) != manifest.id


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda m: m.update(schema="irv2.bundle/2"),
            "schema irv2.bundle/2; expected irv2.bundle/1",
        ),
        (lambda m: (m.clear(), m.update(schema="irv2.bundle/2")), "schema irv2.bundle/2"),
        (lambda m: m.pop("classes"), "classes"),
        (lambda m: m["artifacts"][0].update(precision="fp8"), "artifacts[0].precision"),
        (lambda m: m["artifacts"][0].update(format="torch"), "artifacts[0].format"),
        (lambda m: m["source"].update(epoch="three"), "source.epoch"),
        (lambda m: m["artifacts"][0]["parity"].update(verdict="fine"), "parity.verdict"),
    ],
)
def test_a_manifest_of_another_schema_says_where(bundle, change, expected):
    edit(bundle, change)
    assert expected in refused(bundle)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"schema": 1}', b'{"x": ' + b"[" * 9999],
    ids=["empty", "half", "list", "null", "bytes", "schema", "nested"],
)
def test_bad_json_is_one_line(bundle, content):
    (bundle / "bundle.json").write_bytes(content)
    assert "expected irv2.bundle/1" in refused(bundle)


def test_a_folder_that_is_no_bundle_says_how_to_make_one(tmp_path):
    assert "no bundle.json in it; expected a bundle; make one with irv2-export" in refused(tmp_path)
    assert "no bundle.json" in refused(tmp_path / "gone")


def test_a_file_instead_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    assert os.strerror(errno.ENOTDIR) in refused(tmp_path / "file")


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(position=st.floats(0, 1), value=st.integers(1, 255))
def test_any_flipped_byte_of_the_manifest_is_refused_or_leaves_the_identity(
    tmp_path_factory, position, value
):
    bundle = write_tiny_bundle(tmp_path_factory.mktemp("flips") / "bundle")
    identity = Bundle.open(bundle).id
    content = bytearray((bundle / "bundle.json").read_bytes())
    content[int(position * (len(content) - 1))] ^= value
    (bundle / "bundle.json").write_bytes(content)
    try:
        opened = Bundle.open(bundle)
    except BundleError:
        return
    assert opened.id == identity  # the flip fell into evidence or white space


def test_an_engine_counts_by_the_model_it_was_built_from(bundle):
    """It was judged again, but what is asked of it is the same; its bytes never are."""
    manifest = read_manifest(bundle / "bundle.json")
    [model] = manifest.artifacts

    def with_engine(**fields: Any) -> str:
        engine = msgspec.structs.replace(model, file="model.fp32.plan", format="tensorrt", **fields)
        return bundle_id([model, engine], manifest.preprocess, manifest.classes)

    first = with_engine(sha256="1" * 64, built_from=model.sha256)
    assert with_engine(sha256="2" * 64, built_from=model.sha256) == first
    assert with_engine(sha256="1" * 64, built_from="3" * 64) != first


def test_a_bundle_whose_engine_counted_by_its_bytes_still_opens(bundle):
    manifest = read_manifest(bundle / "bundle.json")
    [model] = manifest.artifacts
    (bundle / "model.fp32.plan").write_bytes(b"an engine")
    engine = msgspec.structs.replace(
        model,
        file="model.fp32.plan",
        format="tensorrt",
        sha256=file_sha256(bundle / "model.fp32.plan"),
        built_from=model.sha256,
    )
    contents = ([model, engine], manifest.preprocess, manifest.classes)
    old = bundle_id(*contents, with_engine_bytes=True)
    assert old != bundle_id(*contents)
    before = msgspec.structs.replace(manifest, artifacts=contents[0], id=old)
    (bundle / MANIFEST).write_bytes(manifest_json(before))
    assert [problem for _, problem in Bundle.open(bundle).check() if problem] == []
