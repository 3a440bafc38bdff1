"""A bundle in a registry: each file a layer, an uncompressed tar that holds it as models/FILE.

An index names three manifests of the same layers. Two are images, so that a cluster can mount the
files at /models (KServe's oci://, Kubernetes' image volumes); the third is CNCF ModelPack's
(github.com/modelpack/model-spec), for programs that know models. Equal bundles get equal digests.
"""

import fcntl
import hashlib
import json
import logging
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from irv2.bundle import Bundle
from irv2.delivery.reference import Reference
from irv2.delivery.registry import INDEX, MANIFEST_TYPE, Registry
from irv2.errors import BundleError, InputError
from irv2.manifest import MANIFEST
from irv2.system.cache import cache_folder
from irv2.system.files import (
    NO_ROOM,
    new_folder,
    require_new_folder,
    temporary_folder,
    try_lock,
)
from irv2.system.progress import ByteProgress

logger = logging.getLogger(__name__)

_MODELPACK = "application/vnd.cncf.model.manifest.v1+json"
_MODELPACK_CONFIG = "application/vnd.cncf.model.config.v1+json"
_IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
_IMAGE_LAYER = "application/vnd.oci.image.layer.v1.tar"
_FILE_PATH = "org.cncf.model.filepath"
_FOLDER, _PACKED = "models", ".layer.tar"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_ARCHITECTURES = ("amd64", "arm64")  # of the machines that mount it: nothing in it is run


class _Layer(NamedTuple):
    name: str
    digest: str
    size: int


def push(path: Path, reference: Reference) -> Reference:
    """Upload a bundle and return where it lies, by digest. Raises Irv2Error.

    The tag comes last, so that it never names a part of a bundle. Raises BundleError unless every
    hash holds.
    """
    bundle, registry = Bundle.open(path), Registry(reference)
    layers = []
    files = _files(path)
    num_bytes = sum((path / name).stat().st_size for name in files)
    with temporary_folder() as folder, ByteProgress(f"push {reference}", num_bytes) as bar:
        for name in files:
            packed = folder / "layer.tar"
            layers.append(_pack(path / name, name, packed))
            registry.put_blob(layers[-1].digest, packed, bar.count)
    manifests = [_put_image(registry, layers, each) for each in _ARCHITECTURES]
    manifests.append(_put_modelpack(registry, layers, bundle))
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    content = _json(index)
    digest = _digest(content)
    registry.put_manifest(content, INDEX, reference.tag or digest)
    return reference.at(digest)


def pull(reference: Reference, out: Path) -> Reference:
    """Download a bundle to `out`, whole or not at all, and return where it lay, by digest.

    Raises InputError for what is no bundle or has other bytes than its digests say, Irv2Error
    where the registry or the disk fails.
    """
    require_new_folder(out)
    registry = Registry(reference)
    manifest, digest = registry.get_manifest(reference.manifest)
    layers = list(_layers(reference, registry, manifest))
    num_bytes = sum(layer.size for layer in layers)
    with (
        new_folder(out, lambda: num_bytes) as folder,
        ByteProgress(f"pull {reference}", num_bytes) as bar,
    ):
        folder.mkdir(parents=True)
        for layer in layers:
            packed = folder / _PACKED
            registry.get_blob(layer.digest, layer.size, packed, bar.count)
            _unpack(reference, packed, folder)
            packed.unlink()
        try:
            Bundle.open(folder)
        except BundleError as error:
            got = f"is no whole bundle ({error.got})"
            raise InputError(reference, got, way_out="push the bundle again") from error
    return reference.at(digest)


def pull_to_cache(reference: Reference) -> Path:
    """Return a bundle that a digest names, from the user's cache if it lies there whole.

    What was damaged there is fetched again. Of several processes that miss it at once, one fetches
    it and the others wait.
    """
    assert reference.digest is not None
    place = cache_folder("bundles") / reference.digest.replace(":", "-")
    if not _problem(place):
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        if not try_lock(lock, fcntl.flock):
            logger.info("bundle_awaited path=%s: another process is fetching it", place)
            fcntl.flock(lock, fcntl.LOCK_EX)
        if problem := _problem(place):  # still
            if place.exists():
                logger.warning("cached_bundle_damaged error=%s", problem)
                shutil.rmtree(place)
            pull(reference, place)
    return place


def _problem(place: Path) -> str:
    """Say why a bundle in the cache can't be used; an empty string if it can."""
    if not place.exists():
        return "is not there"
    try:
        Bundle.open(place)
    except BundleError as error:
        return str(error)
    return ""


def _files(path: Path) -> list[str]:
    """Every file below a bundle, by name; bundle.json last."""
    names = [each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file()]
    return sorted(names, key=lambda name: (name == MANIFEST, name))


def _pack(file: Path, name: str, out: Path) -> _Layer:
    """Write the layer of a file; it depends on the file's name and content alone."""
    entry = tarfile.TarInfo(f"{_FOLDER}/{name}")
    entry.size, entry.mode = file.stat().st_size, 0o644
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar, file.open("rb") as content:
        tar.addfile(entry, content)
    with out.open("rb") as packed:
        digest = hashlib.file_digest(packed, "sha256").hexdigest()
    return _Layer(name, f"sha256:{digest}", out.stat().st_size)


def _unpack(reference: Reference, packed: Path, folder: Path) -> None:
    """Write the files of a layer.

    Raises InputError for what would lie elsewhere, for links, and for files with holes, which a few
    bytes could make larger than any disk.
    """
    try:
        with tarfile.open(packed, "r:") as tar:
            for entry in tar:
                name = PurePosixPath(entry.name)
                inside = name.parts[:1] == (_FOLDER,) and ".." not in name.parts
                if entry.isdir() and inside:
                    continue
                is_plain = entry.isfile() and not entry.issparse()
                if not is_plain or not inside or len(name.parts) < 2:
                    raise InputError(reference, f"holds {entry.name}", f"files in {_FOLDER}/")
                with _created(reference, folder, name) as out:
                    content = tar.extractfile(entry)
                    assert content is not None
                    shutil.copyfileobj(content, out)
    except (tarfile.TarError, ValueError) as error:  # ValueError: a number that is none
        raise InputError(reference, f"a layer can't be read ({error})", "a tar file") from error


def _created(reference: Reference, folder: Path, name: PurePosixPath) -> IO[bytes]:
    """Open a new file of a layer. Raises InputError for a name that no file can have there."""
    place = folder.joinpath(*name.parts[1:])
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return place.open("xb")  # twice, or in other case where that is one, is refused
    except (OSError, ValueError, RecursionError) as error:  # a null byte; a thousand folders deep
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        got = f"holds {str(name)!a}, which can't be written ({reason})"
        raise InputError(reference, got, "names of files") from error


def _put_image(registry: Registry, layers: list[_Layer], architecture: str) -> dict[str, Any]:
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
    }
    types = [(_IMAGE_LAYER, layer) for layer in layers]
    put = _put_manifest(registry, types, _IMAGE_CONFIG, config)
    return put | {"platform": {"architecture": architecture, "os": "linux"}}


def _put_modelpack(registry: Registry, layers: list[_Layer], bundle: Bundle) -> dict[str, Any]:
    source = bundle.manifest.source
    config = {
        "descriptor": {"name": source.arch, "version": bundle.id, "family": "inception-resnet-v2"},
        "modelfs": {"type": "layers", "diffIds": [layer.digest for layer in layers]},
        "config": {
            "architecture": "cnn",
            "format": "onnx",
            "precision": ",".join(dict.fromkeys(a.precision for a in bundle.artifacts)),
        },
    }
    weights = {artifact.file for artifact in bundle.artifacts}
    types = [(_modelpack_type(layer.name, weights), layer) for layer in layers]
    put = _put_manifest(registry, types, _MODELPACK_CONFIG, config, {"artifactType": _MODELPACK})
    return put | {"artifactType": _MODELPACK}


def _modelpack_type(name: str, weights: set[str]) -> str:
    other = "doc" if name.endswith(".md") else "weight.config"
    kind = "weight" if name in weights else other
    return f"application/vnd.cncf.model.{kind}.v1.tar"


def _put_manifest(
    registry: Registry,
    layers: list[tuple[str, _Layer]],
    config_type: str,
    config: dict[str, Any],
    more: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Upload a manifest with its config, and return its entry in the index."""
    content = _json(config)
    registry.put_blob(_digest(content), content)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        **(more or {}),
        "config": {"mediaType": config_type, "digest": _digest(content), "size": len(content)},
        "layers": [
            {
                "mediaType": media_type,
                "digest": layer.digest,
                "size": layer.size,
                "annotations": {_FILE_PATH: layer.name},
            }
            for media_type, layer in layers
        ],
    }
    content = _json(manifest)
    registry.put_manifest(content, MANIFEST_TYPE, _digest(content))
    return {"mediaType": MANIFEST_TYPE, "digest": _digest(content), "size": len(content)}


def _layers(reference: Reference, registry: Registry, manifest: dict[str, Any]) -> Iterator[_Layer]:
    """The layers of a manifest, or of the first one in an index."""
    try:
        if manifest.get("mediaType") == INDEX:
            manifest, _ = registry.get_manifest(_digest_in(manifest["manifests"][0]))
        for layer in manifest["layers"]:
            digest, size = _digest_in(layer), layer["size"]
            if not layer["mediaType"].endswith(".tar"):
                raise InputError(reference, f"a layer of type {layer['mediaType']}", _IMAGE_LAYER)
            if not isinstance(size, int) or size < 0:
                raise ValueError(f"a layer's size: there is {size}")
            yield _Layer("", digest, size)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(reference, f"its manifest lacks {error}", "what irv2 push made") from error


def _digest_in(entry: dict[str, Any]) -> str:
    """The digest that an entry names; nothing else is asked for, as a tag can be moved."""
    digest = entry["digest"]
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"a digest: there is {digest}")
    return str(digest)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
