"""A signed bundle is believed as it was signed, from whom it was signed, and in no other case."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from project import ROOT
from signing import certified, key_pair
from tiny_bundle import write_tiny_bundle

from irv2.bundle import Bundle
from irv2.errors import BundleError, InputError, UsageError
from irv2.manifest import MANIFEST, SIGNATURE, manifest_json, read_manifest
from irv2.system.files import file_sha256
from irv2.trust.check import require_signature
from irv2.trust.keys import read_signer, read_trusted, signer_of
from irv2.trust.sign import sign
from irv2.trust.signature import read_signature, signed_bytes

VECTORS = ROOT.parent / "shared" / "schemas" / "oms" / "vectors"
MODEL_SIGNING = shutil.which("model_signing")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    return {name: key_pair(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.bundle")


@pytest.fixture
def signed(bundle, keys) -> Path:
    sign(bundle, read_signer(keys["ours"].private))
    return bundle


def refusal(bundle: Path, trusted: Path) -> str:
    """The one line with which the bundle is not believed."""
    with pytest.raises(InputError) as caught:
        require_signature(Bundle.open(bundle), read_trusted(trusted))
    assert caught.value.exit_code == 2
    return str(caught.value)


def with_payload(bundle: Path, key: Path, change) -> None:
    """Change the signed statement, and sign it again with this key."""
    document = json.loads((bundle / SIGNATURE).read_text())
    envelope = document["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    private = load_pem_private_key(key.read_bytes(), None)
    made = private.sign(signed_bytes(payload), ec.ECDSA(SHA256()))
    envelope["payload"] = base64.b64encode(payload).decode()
    envelope["signatures"][0]["sig"] = base64.b64encode(made).decode()
    (bundle / SIGNATURE).write_text(json.dumps(document))


@pytest.mark.parametrize(
    "curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name
)
def test_the_public_key_verifies_what_the_private_key_has_signed(bundle, tmp_path, curve):
    pair = key_pair(tmp_path, curve=curve)
    sign(bundle, read_signer(pair.private))
    signature = require_signature(Bundle.open(bundle), read_trusted(pair.public))
    assert signer_of(signature) == f"key {file_sha256(pair.public)[:12]}"


def test_a_root_verifies_what_a_certificate_below_it_has_signed(bundle, tmp_path):
    ours, theirs = certified(tmp_path), certified(tmp_path, "mallory")
    sign(bundle, read_signer(ours.private, ours.certificate, [ours.chain]))
    signature = require_signature(Bundle.open(bundle), read_trusted(ours.root))
    assert signer_of(signature).startswith("CN=signer")
    assert "is not trusted" in refusal(bundle, theirs.root)
    bare = key_pair(tmp_path)
    assert "was made with the key" not in refusal(bundle, bare.public)
    sign(bundle, read_signer(bare.private))
    assert "was made with a bare key; expected a certificate issued by" in refusal(
        bundle, ours.root
    )


def test_a_certificate_that_is_not_valid_now_neither_signs_nor_verifies(
    bundle, tmp_path, monkeypatch
):
    for days, problem in (((-9, -1), "certificate expired at"), ((1, 9), "is not valid before")):
        old = certified(tmp_path, days=days)
        with pytest.raises(UsageError, match=problem):
            read_signer(old.private, old.certificate, [old.chain])
        with monkeypatch.context() as patch:
            patch.setattr("irv2.trust.keys._problem_of", lambda certificate: "")
            sign(bundle, read_signer(old.private, old.certificate, [old.chain]))
        assert problem in refusal(bundle, old.root)


@pytest.mark.parametrize(
    ("purposes", "may_sign"),
    [
        (None, True),  # its key may make digital signatures, of anything
        ([Purpose.CODE_SIGNING], True),
        ([Purpose.SERVER_AUTH, Purpose.ANY_EXTENDED_KEY_USAGE], True),
        ([Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH], False),
        ([Purpose.EMAIL_PROTECTION], False),
    ],
)
def test_a_certificate_for_other_purposes_neither_signs_nor_verifies(
    bundle, tmp_path, monkeypatch, purposes, may_sign
):
    ours = certified(tmp_path, purposes=purposes)
    with monkeypatch.context() as patch:
        patch.setattr("irv2.trust.keys._problem_of", lambda certificate: "")
        sign(bundle, read_signer(ours.private, ours.certificate, [ours.chain]))
    if may_sign:
        read_signer(ours.private, ours.certificate, [ours.chain])
        require_signature(Bundle.open(bundle), read_trusted(ours.root))
    else:
        with pytest.raises(UsageError, match="is for other purposes"):
            read_signer(ours.private, ours.certificate, [ours.chain])
        assert "is for other purposes than signing code" in refusal(bundle, ours.root)


def test_another_key_is_not_believed(signed, keys):
    line = refusal(signed, keys["theirs"].public)
    assert f"was made with the key {file_sha256(keys['ours'].public)[:12]}" in line
    forged = json.loads((signed / SIGNATURE).read_text())
    forged["verificationMaterial"]["publicKey"]["hint"] = file_sha256(keys["theirs"].public)
    (signed / SIGNATURE).write_text(json.dumps(forged))
    assert "was not made with this key, or was changed" in refusal(signed, keys["theirs"].public)


def test_an_unsigned_bundle_is_not_believed(bundle, keys):
    assert f"is not signed: no {SIGNATURE} in it" in refusal(bundle, keys["ours"].public)


def restate(bundle: Path) -> None:
    """Make bundle.json agree with the files again, as whoever changed one would."""
    manifest = read_manifest(bundle / MANIFEST)
    files = {name: file_sha256(bundle / name) for name in manifest.files}
    manifest = msgspec.structs.replace(manifest, files=files)
    (bundle / MANIFEST).write_bytes(manifest_json(manifest))


def add(bundle: Path) -> None:
    (bundle / "notes").mkdir()
    (bundle / "notes" / "more.txt").write_text("more")


def change(bundle: Path) -> None:
    with (bundle / "selftest.npz").open("ab") as file:
        file.write(b" ")
    restate(bundle)


def rename(bundle: Path) -> None:
    (bundle / "extra.txt").rename(bundle / "other.txt")


def remove(bundle: Path) -> None:
    (bundle / "extra.txt").unlink()


def link(bundle: Path) -> None:
    (bundle / "extra.txt").rename(bundle.parent / "extra.txt")
    (bundle / "extra.txt").symlink_to(bundle.parent / "extra.txt")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (add, "notes/more.txt: is not in model.sig: it was added after signing"),
        (change, "bundle.json: sha256 "),
        (rename, "extra.txt: is signed, but is missing"),
        (remove, "extra.txt: is signed, but is missing"),
        (link, "extra.txt: a link, or no file"),
    ],
)
def test_a_folder_that_is_not_as_it_was_signed_is_not_believed(bundle, keys, damage, problem):
    (bundle / "extra.txt").write_text("no part of bundle.json, but of what was signed")
    sign(bundle, read_signer(keys["ours"].private))
    damage(bundle)
    assert problem in refusal(bundle, keys["ours"].public)


def test_what_lies_deeper_than_python_calls_itself_is_seen(signed, keys):
    outer, inner = signed / ("a/" * 500), signed.parent / ("b/" * 800)
    outer.mkdir(parents=True)  # in two parts, since mkdir calls itself
    inner.mkdir(parents=True)
    (inner / "more").touch()
    (signed.parent / "b").rename(outer / "b")
    try:
        assert "b/more: is not in model.sig: it was added" in refusal(signed, keys["ours"].public)
    finally:
        subprocess.run(["rm", "-r", signed / "a"], check=True)  # Python could not


def test_the_signature_of_another_bundle_is_not_believed(signed, keys, tmp_path):
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    shutil.copy(signed / SIGNATURE, other / SIGNATURE)
    assert "bundle.json: sha256 " in refusal(other, keys["ours"].public)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.update(predicateType="https://example.com/v9"), "https://example.com/v9"),
        (lambda s: s["predicate"]["serialization"].update(method="shards"), "sha256 of shards"),
        (lambda s: s["predicate"]["resources"].pop(0), "its subject is not its list of files"),
        (lambda s: s["predicate"].pop("resources"), "missing required field"),
        (lambda s: s["subject"].clear(), "its subject is not its list of files"),
    ],
)
def test_a_statement_that_does_not_name_the_files_is_refused_though_signed(
    signed, keys, change, problem
):
    with_payload(signed, keys["ours"].private, change)
    assert problem in refusal(signed, keys["ours"].public)


def test_what_the_signer_left_out_may_change_but_never_bundle_json(signed, keys):
    def leave_out(name: str):
        def change(statement) -> None:
            predicate = statement["predicate"]
            kept = [each for each in predicate["resources"] if each["name"] != name]
            predicate["resources"] = kept
            predicate["serialization"]["ignore_paths"].append(name)
            whole = b"".join(bytes.fromhex(each["digest"]) for each in kept)
            statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(whole).hexdigest()

        return change

    (signed / ".gitattributes").write_text("as hosts of repositories add")
    with_payload(signed, keys["ours"].private, leave_out("selftest.npz"))
    require_signature(Bundle.open(signed), read_trusted(keys["ours"].public))
    with_payload(signed, keys["ours"].private, leave_out(MANIFEST))
    assert f"does not cover {MANIFEST}" in refusal(signed, keys["ours"].public)


def test_a_bundle_whose_hashes_do_not_hold_is_not_signed(bundle, keys):
    (bundle / "model.onnx").write_bytes(b"another")
    with pytest.raises(BundleError, match="the file was changed"):
        sign(bundle, read_signer(keys["ours"].private))
    assert not (bundle / SIGNATURE).exists()


def test_a_signature_that_no_program_would_write_is_one_line(signed, tmp_path):
    (signed / SIGNATURE).write_bytes(b'{"mediaType": ' + b"[" * 10**5)
    with pytest.raises(BundleError, match="expected a Sigstore bundle"):
        read_signature(signed)
    one = certified(tmp_path)
    sign(signed, read_signer(one.private, one.certificate, [one.chain]))
    document = json.loads((signed / SIGNATURE).read_text())
    [first, *_] = document["verificationMaterial"]["x509CertificateChain"]["certificates"]
    content = base64.b64decode(first["rawBytes"])
    usage, names = b"\x06\x03\x55\x1d\x0f", b"\x06\x03\x55\x1d\x11"  # the extensions' names
    assert usage in content
    assert names in content
    first["rawBytes"] = base64.b64encode(content.replace(usage, names)).decode()
    (signed / SIGNATURE).write_text(json.dumps(document))
    assert "holds a certificate that can't be read" in refusal(signed, one.root)
    with pytest.raises(BundleError, match="a certificate that can't be read"):
        signer_of(read_signature(signed))


def test_what_can_not_sign_or_verify_is_said_in_one_line(tmp_path):
    curve, closed = (key_pair(tmp_path, "k", ec.SECP256K1()), key_pair(tmp_path, password=b"x"))
    for read, problem in (
        (lambda: read_signer(curve.private), "a key of another kind"),
        (lambda: read_trusted(curve.public), "a key of another kind"),
        (lambda: read_signer(closed.private), "is encrypted"),
        (lambda: read_signer(closed.public), "no private key that can be read"),
        (lambda: read_trusted(closed.private), "neither public key nor certificate"),
    ):
        with pytest.raises(UsageError, match=problem):
            read()
    one, other = certified(tmp_path, "one"), certified(tmp_path, "other")
    with pytest.raises(UsageError, match="is for another key"):
        read_signer(one.private, other.certificate)


needs_vectors = pytest.mark.skipif(not VECTORS.is_dir(), reason="the specification's vectors")


@needs_vectors
def test_the_specifications_signatures_by_key_and_certificate_verify(tmp_path):
    """Both are by one key; of the authorities, the vectors hold the one that issued."""
    chain = json.loads((VECTORS / "valid_certificate.json").read_text())["verificationMaterial"][
        "x509CertificateChain"
    ]["certificates"]
    authority, key = tmp_path / "authority.pem", tmp_path / "key.pem"
    authority.write_bytes(pem_of(chain[1]["rawBytes"]))
    key.write_bytes(public_key_of(chain[0]["rawBytes"]))
    for vector, trusted in (("key", key), ("certificate", key), ("certificate", authority)):
        shutil.copy(VECTORS / f"valid_{vector}.json", tmp_path / SIGNATURE)
        read_trusted(trusted).check(read_signature(tmp_path))


@needs_vectors
@pytest.mark.parametrize("name", sorted(path.name for path in VECTORS.glob("invalid*")))
def test_the_specifications_faulty_signatures_are_refused(bundle, tmp_path, name):
    shutil.copy(VECTORS / name, bundle / SIGNATURE)
    with pytest.raises(BundleError) as caught:
        read_signature(bundle).check_files(Bundle.open(bundle))
    assert str(bundle / SIGNATURE) in str(caught.value)


@needs_vectors
def test_sigstores_own_method_is_refused_since_it_asks_the_network(bundle):
    shutil.copy(VECTORS / "valid_sigstore.json", bundle / SIGNATURE)
    with pytest.raises(BundleError, match="expected a signature by key or certificate"):
        read_signature(bundle)


@needs_vectors
def test_what_we_write_meets_the_specifications_schemas(signed, keys, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource

    folder = VECTORS.parent
    schemas = {kind: json.loads((folder / f"{kind}.schema.json").read_text()) for kind in (
        "bundle", "envelope", "statement", "predicate")}  # fmt: skip
    registry = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in schemas.values()
    )
    other = write_tiny_bundle(tmp_path / "other")
    made = certified(tmp_path)
    sign(other, read_signer(made.private, made.certificate, [made.chain]))
    for bundle in (signed, other):
        document = json.loads((bundle / SIGNATURE).read_text())
        statement = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        for kind, value in (("bundle", document), ("statement", statement)):
            jsonschema.Draft202012Validator(schemas[kind], registry=registry).validate(value)


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [MODEL_SIGNING, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


@pytest.mark.skipif(not MODEL_SIGNING, reason="model_signing, the reference implementation")
def test_the_reference_implementation_and_ours_verify_each_others_signatures(bundle, tmp_path):
    pair, made, signature = key_pair(tmp_path), certified(tmp_path), bundle / SIGNATURE
    at = ("--signature", signature)
    by_key = ("verify", "key", bundle, *at, "--public_key", pair.public)
    by_certificate = ("verify", "certificate", bundle, *at, "--certificate_chain", made.root)

    sign(bundle, read_signer(pair.private))
    done = model_signing(*by_key)
    assert done.returncode == 0, done.stderr
    sign(bundle, read_signer(made.private, made.certificate, [made.chain]))
    done = model_signing(*by_certificate)
    assert done.returncode == 0, done.stderr
    (bundle / "added.txt").write_text("")
    assert model_signing(*by_certificate).returncode != 0
    (bundle / "added.txt").unlink()

    signature.unlink()
    done = model_signing("sign", "key", bundle, *at, "--private_key", pair.private)
    assert done.returncode == 0, done.stderr
    require_signature(Bundle.open(bundle), read_trusted(pair.public))
    signature.unlink()
    certificate = ("--signing_certificate", made.certificate, "--certificate_chain", made.chain)
    done = model_signing(
        "sign", "certificate", bundle, *at, "--private_key", made.private, *certificate
    )
    assert done.returncode == 0, done.stderr
    require_signature(Bundle.open(bundle), read_trusted(made.root))


def test_no_connection_is_made(signed, keys):
    program = f"""
import socket, sys
def refuse(*_): raise SystemExit("asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
from pathlib import Path
from irv2.bundle import Bundle
from irv2.trust.keys import read_signer, read_trusted
from irv2.trust.check import require_signature
from irv2.trust.sign import sign
sign(Path({str(signed)!r}), read_signer(Path({str(keys["ours"].private)!r})))
require_signature(Bundle.open({str(signed)!r}), read_trusted(Path({str(keys["ours"].public)!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def pem_of(certificate: str) -> bytes:
    lines = ("-----BEGIN CERTIFICATE-----", certificate, "-----END CERTIFICATE-----", "")
    return "\n".join(lines).encode()


def public_key_of(certificate: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_der_x509_certificate

    key = load_der_x509_certificate(base64.b64decode(certificate)).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_link_to_a_signed_bundle_is_believed(signed, keys, tmp_path):
    (tmp_path / "current").symlink_to(signed)
    require_signature(Bundle.open(tmp_path / "current"), read_trusted(keys["ours"].public))
