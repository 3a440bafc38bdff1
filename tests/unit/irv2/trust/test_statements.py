"""What is signed with a bundle says what bundle.json says, in formats that others define."""

import json

import msgspec
import pytest
from signing import key_pair
from tiny_bundle import passed_parity, write_tiny_bundle

from irv2.errors import BundleError
from irv2.manifest import MANIFEST, Imported, read_manifest
from irv2.measures.estimates import proportion
from irv2.trust.keys import read_signer
from irv2.trust.sign import renew, sign
from irv2.trust.statements import BOM, CARD, VERDICTS, bom, card, verdicts


@pytest.fixture
def bundle(tmp_path):
    return write_tiny_bundle(tmp_path / "tiny.bundle")


@pytest.fixture
def manifest(bundle):
    return read_manifest(bundle / MANIFEST)


def with_parity(manifest, **changes):
    [artifact] = manifest.artifacts
    parity = msgspec.structs.replace(artifact.parity, **changes)
    return manifest.with_artifacts([msgspec.structs.replace(artifact, parity=parity)])


def test_a_statement_names_artefact_data_tolerances_and_counts(manifest):
    [artifact], [statement] = manifest.artifacts, verdicts(manifest)
    predicate, parity = statement["predicate"], artifact.parity
    assert statement["predicateType"] == "https://in-toto.io/attestation/test-result/v0.1"
    assert statement["subject"] == [{"name": "model.onnx", "digest": {"sha256": artifact.sha256}}]
    images, gate = predicate["configuration"]
    assert images["digest"] == {"sha256": parity.data_sha256}
    assert gate["annotations"]["confidence"] == parity.confidence
    assert gate["annotations"]["tolerance_top1_points"] == parity.top1.tolerance_points
    assert predicate["parity"] == msgspec.to_builtins(parity)
    assert (predicate["result"], predicate["passedTests"]) == ("PASSED", ["parity"])


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({"verdict": "failed"}, "FAILED"),
        ({"verdict": "too_few_images"}, "FAILED"),
        ({"at_chance": True}, "WARNED"),
    ],
)
def test_only_what_passed_without_reserve_is_called_passed(manifest, changes, result):
    [statement] = verdicts(with_parity(manifest, **changes))
    predicate = statement["predicate"]
    assert predicate["result"] == result
    assert predicate["passedTests"] == []
    assert predicate[f"{result.lower()}Tests"] == ["parity"]


def test_what_nothing_has_run_has_neither_statement_nor_error(tmp_path):
    manifest = read_manifest(write_tiny_bundle(tmp_path / "b", verdict=None) / MANIFEST)
    assert list(verdicts(manifest)) == []
    [component] = bom(manifest)["components"]
    assert component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"] == []
    assert "Not judged: model.onnx." in card(manifest)


def test_the_bom_states_each_error_with_its_exact_interval(manifest):
    top1 = msgspec.structs.replace(passed_parity().top1, error=12.5)
    changed = with_parity(manifest, n=200, top1=top1)
    [component] = bom(changed)["components"]
    metric = component["modelCard"]["quantitativeAnalysis"]["performanceMetrics"][0]
    exact = proportion(25, 200)
    assert (metric["type"], metric["value"]) == ("top-1 error, percent", "12.5")
    assert float(metric["confidenceInterval"]["lowerBound"]) == pytest.approx(exact.low, 1e-5)
    assert float(metric["confidenceInterval"]["upperBound"]) == pytest.approx(exact.high, 1e-5)
    assert f"12.50 ({exact.low:.2f}-{exact.high:.2f})" in card(changed)


def test_the_bom_meets_cyclonedx_schema(manifest):
    validation = pytest.importorskip("cyclonedx.validation.json")
    schema = pytest.importorskip("cyclonedx.schema")
    imported = Imported(file="w.pth", sha256="0" * 64, kind="timm", license="apache-2.0")
    source = msgspec.structs.replace(manifest.source, imported=imported)
    licensed = msgspec.structs.replace(manifest, source=source)
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    for each in (manifest, licensed):
        assert validator.validate_str(json.dumps(bom(each))) is None
    assert validator.validate_str(json.dumps(bom(manifest) | {"more": 1})) is not None


def test_the_statements_are_valid_in_toto(manifest):
    statement_pb2 = pytest.importorskip("in_toto_attestation.v1.statement_pb2")
    predicate_pb2 = pytest.importorskip(
        "in_toto_attestation.predicates.test_result.v0.test_result_pb2"
    )
    from google.protobuf import json_format

    [statement] = verdicts(manifest)
    json_format.ParseDict(statement, statement_pb2.Statement())
    known = {k: v for k, v in statement["predicate"].items() if k != "parity"}
    json_format.ParseDict(known, predicate_pb2.TestResult())


def test_signing_again_replaces_them_and_what_is_left_unsigned_has_none(bundle, tmp_path):
    signer = read_signer(key_pair(tmp_path).private)
    sign(bundle, signer)
    (bundle / CARD).write_text((bundle / CARD).read_text() + "more\n")
    sign(bundle, signer)
    assert "more" not in (bundle / CARD).read_text()
    renew(bundle, None)
    left = {path.name for path in bundle.iterdir()}
    assert left.isdisjoint({BOM, CARD, VERDICTS, "model.sig"})


def test_a_card_of_someones_own_is_never_replaced(bundle, tmp_path):
    (bundle / CARD).write_text("# Mine")
    with pytest.raises(BundleError, match="would be replaced, and is not ours"):
        sign(bundle, read_signer(key_pair(tmp_path).private))
    assert (bundle / CARD).read_text() == "# Mine"
    assert not (bundle / BOM).exists()
    renew(bundle, None)
    assert (bundle / CARD).exists()
