"""`model.sig`, the signature of a bundle's folder: OpenSSF Model Signing 1.0.

A Sigstore bundle around a DSSE envelope, and in that an in-toto statement with the SHA-256 of every
file. Specification: github.com/ossf/model-signing-spec, spec/v1.0.md; the envelope's:
github.com/secure-systems-lab/dsse, protocol.md.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from irv2.bundle import Bundle
from irv2.errors import BundleError
from irv2.manifest import MANIFEST, SIGNATURE
from irv2.system.files import file_sha256

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_SIGN_AGAIN = "sign it with irv2 sign"
# What hosts of repositories add; the reference implementation leaves it out too.
_IGNORED = (SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore")


class _Json(msgspec.Struct, kw_only=True, rename="camel"):
    """Bytes are base64 in it; fields that we know nothing of are passed over."""


class _PublicKey(_Json):
    hint: str = ""


class _Certificate(_Json):
    raw_bytes: bytes


class _Chain(_Json):
    certificates: list[_Certificate]


class _Material(_Json):
    public_key: _PublicKey | msgspec.UnsetType = msgspec.UNSET
    x509_certificate_chain: _Chain | msgspec.UnsetType = msgspec.UNSET
    tlog_entries: list[Any] = []


class _DsseSignature(_Json):
    sig: bytes
    keyid: str | None = ""


class _Envelope(_Json):
    payload: bytes
    payload_type: str
    signatures: list[_DsseSignature]


class _SigstoreBundle(_Json):
    media_type: str
    verification_material: _Material
    dsse_envelope: _Envelope


class _Subject(msgspec.Struct):
    name: str
    digest: dict[str, str]


class _Resource(msgspec.Struct):
    name: str
    algorithm: str
    digest: str


class _Serialization(msgspec.Struct):
    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: list[str] = []


class _Predicate(msgspec.Struct):
    resources: list[_Resource]
    serialization: _Serialization


class _Statement(msgspec.Struct, rename={"type": "_type", "predicate_type": "predicateType"}):
    type: str
    subject: list[_Subject]
    predicate_type: str
    predicate: msgspec.Raw


@dataclass(frozen=True, slots=True)
class Signature:
    """What model.sig holds. Whether it is to be believed, `irv2.trust.keys.Trusted` finds out."""

    path: Path
    payload: bytes
    signature: bytes
    key_sha256: str  # empty where it does not name its key
    certificates_der: list[bytes]  # the signer's first; none with the key method

    @property
    def signed_bytes(self) -> bytes:
        """What was signed: the payload with its type, in DSSE's encoding."""
        return signed_bytes(self.payload)

    def check_files(self, bundle: Bundle) -> None:
        """Raise BundleError unless it is about exactly the files that lie in the bundle.

        Only what bundle.json does not name is hashed: the rest was, when the bundle was opened.
        """
        signed, ignored = _signed_files(self)
        if MANIFEST not in signed:
            raise BundleError(self.path, f"does not cover {MANIFEST}", way_out=_SIGN_AGAIN)
        found = digests(bundle, ignored)
        names = sorted(signed.keys() | found.keys())
        for name in sorted(names, key=lambda name: name != MANIFEST):  # it says most: come first
            if name not in found:
                problem = "is signed, but is missing"
            elif name not in signed:
                problem = f"is not in {SIGNATURE}: it was added after signing"
            elif found[name] != signed[name]:
                problem = f"sha256 {found[name][:12]}; expected {signed[name][:12]} as signed"
            else:
                continue
            raise BundleError(bundle.path / name, problem, way_out=f"restore it, or {_SIGN_AGAIN}")


def read_signature(folder: Path) -> Signature | None:
    """Read a bundle's signature, None where it has none. Raises BundleError for a broken one."""
    path = folder / SIGNATURE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        read = msgspec.json.decode(content, type=_SigstoreBundle)
    except (UnicodeDecodeError, RecursionError, msgspec.MsgspecError) as error:
        raise BundleError(path, str(error), "a Sigstore bundle", _SIGN_AGAIN) from error
    material, envelope = read.verification_material, read.dsse_envelope
    if envelope.payload_type != _PAYLOAD_TYPE or not envelope.signatures:
        got = f"payload of type {envelope.payload_type}, {len(envelope.signatures)} signatures"
        raise BundleError(path, got, f"{_PAYLOAD_TYPE} and a signature", _SIGN_AGAIN)
    if isinstance(material.x509_certificate_chain, _Chain):
        chain = [each.raw_bytes for each in material.x509_certificate_chain.certificates]
        return Signature(path, envelope.payload, envelope.signatures[0].sig, "", chain)
    if isinstance(material.public_key, _PublicKey):
        hint = material.public_key.hint
        return Signature(path, envelope.payload, envelope.signatures[0].sig, hint, [])
    got = "neither key nor certificate chain (Sigstore's own method asks the network)"
    raise BundleError(path, got, "a signature by key or certificate", _SIGN_AGAIN)


def signature_json(
    payload: bytes, signature: bytes, key_sha256: str, certificates_der: list[bytes]
) -> bytes:
    """Return the bytes of model.sig."""
    if certificates_der:
        chain = _Chain(certificates=[_Certificate(raw_bytes=each) for each in certificates_der])
        material = _Material(x509_certificate_chain=chain)
    else:
        material = _Material(public_key=_PublicKey(hint=key_sha256))
    envelope = _Envelope(
        payload=payload, payload_type=_PAYLOAD_TYPE, signatures=[_DsseSignature(sig=signature)]
    )
    bundle = _SigstoreBundle(
        media_type=_MEDIA_TYPE, verification_material=material, dsse_envelope=envelope
    )
    return msgspec.json.encode(bundle)


def statement_json(bundle: Bundle) -> bytes:
    """Return the statement to be signed: every file of an opened bundle with its hash."""
    found = digests(bundle, _IGNORED)
    predicate = _Predicate(
        resources=[_Resource(name, "sha256", found[name]) for name in sorted(found)],
        serialization=_Serialization("files", "sha256", False, [*_IGNORED]),
    )
    subject = _Subject(bundle.path.resolve().name, {"sha256": _root(predicate)})
    raw = msgspec.Raw(msgspec.json.encode(predicate))
    return msgspec.json.encode(_Statement(_STATEMENT, [subject], _PREDICATE, raw))


def signed_bytes(payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding."""
    head = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} "
    return head.encode() + payload


def digests(bundle: Bundle, ignored: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 by name of all files below an opened bundle but `ignored` ones."""
    known = bundle.manifest.files | {a.file: a.sha256 for a in bundle.artifacts}
    return {
        name: known.get(name) or file_sha256(bundle.path / name)
        for name in _files(bundle.path)
        if not any(name == each or name.startswith(f"{each}/") for each in ignored)
    }


def _files(folder: Path) -> Iterator[str]:
    """The names of all files, at any depth. Raises BundleError for what is no file."""
    folders = [folder]
    while folders:
        place = folders.pop()
        try:
            found = list(place.iterdir())
        except OSError as error:
            got = f"can't be listed ({error.strerror})"
            raise BundleError(place, got, "a folder that can be read") from error
        for path in found:
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise BundleError(path, "a link, or no file", "files alone in what is signed")
            if path.is_dir():
                folders.append(path)
            else:
                yield path.relative_to(folder).as_posix()


def _signed_files(signature: Signature) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the payload says of the files, and the paths that the signer left out."""
    path = signature.path
    try:
        statement = msgspec.json.decode(signature.payload, type=_Statement)
        kind = (statement.type, statement.predicate_type)
        if kind != (_STATEMENT, _PREDICATE):
            got = f"a statement with the predicate {statement.predicate_type}"
            raise BundleError(path, got, _PREDICATE, _SIGN_AGAIN)
        predicate = msgspec.json.decode(statement.predicate, type=_Predicate)
        root = _root(predicate)
    except (
        UnicodeDecodeError,
        RecursionError,
        ValueError,
    ) as error:  # MsgspecError and fromhex's are such
        raise BundleError(path, str(error), _PREDICATE, _SIGN_AGAIN) from error
    how = predicate.serialization
    if (how.method, how.hash_type) != ("files", "sha256"):
        got = f"{how.hash_type} of {how.method}"
        raise BundleError(path, got, "sha256 of files", _SIGN_AGAIN)
    if [subject.digest.get("sha256") for subject in statement.subject] != [root]:
        raise BundleError(path, "its subject is not its list of files", root[:12], _SIGN_AGAIN)
    signed = {resource.name: resource.digest for resource in predicate.resources}
    return signed, (*_IGNORED, *how.ignore_paths)


def _root(predicate: _Predicate) -> str:
    """The digest of the whole: of the files' digests, in their order."""
    whole = b"".join(bytes.fromhex(resource.digest) for resource in predicate.resources)
    return hashlib.sha256(whole).hexdigest()
