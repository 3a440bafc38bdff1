"""Weights by name: a file of a repository on the Hugging Face hub, in the cache of its library.

huggingface_hub resolves the revision, downloads, resumes, caches, and takes tokens and proxies from
where its other users have them. Only the weights, the config.json beside them and the model card
are fetched.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from irv2 import __version__
from irv2.convert.importing.timm_files import CONFIG
from irv2.errors import EngineError, InputError, Irv2Error, UsageError
from irv2.system.files import START_AGAIN, explain_full_disk, file_sha256
from irv2.system.progress import ByteProgress
from irv2.system.stop import raise_if_stopped
from irv2.system.text import one_line, shortened

logger = logging.getLogger(__name__)

PREFIX = "hf:"
FORM = "hf:OWNER/NAME[@REVISION][/FILE]"
CARD = "README.md"
PREFERRED = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".h5", ".keras", ".t7")
# The library's settings, unless the user has made them. Its other protocol, Xet, has a client of
# its own that goes to servers of its own. The bar is ours.
DISABLED = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_PROGRESS_BARS")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file in the cache, with config.json beside it if the repository has one, and its origin."""

    path: Path
    hub: str
    repository: str
    revision: str  # the commit
    file: str
    license: str  # as the model card states it; empty if it does not

    def to_json(self) -> dict[str, str]:
        """What a checkpoint records of it."""
        return {
            "file": self.file,
            "hub": self.hub,
            "repository": self.repository,
            "revision": self.revision,
            "license": self.license,
        }

    def __str__(self) -> str:
        licence = self.license or "not stated"
        return f"{self.hub}/{self.repository}, revision {self.revision}, licence {licence}"


def fetch(name: str, out: Path) -> HubFile:
    """Bring the file that `hf:OWNER/NAME[@REVISION][/FILE]` names into the cache.

    A commit whose files are there already is taken without a connection. Raises UsageError for a
    name of another form, InputError for what the hub does not have or does not give, and Irv2Error
    if it can't be reached: then the line says which file to bring, and how to import it as `out`.
    """
    hub = _library(name)
    try:
        place = hub.parse_hf_uri("hf://" + name.removeprefix(PREFIX).lstrip("/"))
    except hub.errors.HfUriError as error:
        raise UsageError(name, error.msg.strip(" ."), FORM) from error
    if place.type != "model":
        raise UsageError(name, f"a {place.type}", FORM)
    with _explained(hub, name, place, out):
        return _fetch(hub, name, place)


def _library(name: str) -> Any:  # noqa: ANN401 (a module)
    """Import huggingface_hub, which then tells nothing of its user and speaks plain HTTP."""
    os.environ |= {name: os.environ.get(name, "1") for name in DISABLED}
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise_if_stopped()
        raise EngineError(
            name, f"package {error.name} is not installed", way_out='pip install "irv2[hub]"'
        ) from error
    logging.getLogger("huggingface_hub").propagate = False  # it prints its warnings itself
    return huggingface_hub


def _fetch(hub: Any, name: str, place: Any) -> HubFile:  # noqa: ANN401 (a module, its HfUri)
    agent = {"library_name": "irv2", "library_version": __version__}
    commit = hub.HfApi(**agent).resolve_revision(place.id, revision=place.revision).resolved
    config = str(PurePosixPath(place.path_in_repo or CONFIG).with_name(CONFIG))
    small = [CARD, config]
    folder = Path(hub.snapshot_download(place.id, revision=commit, allow_patterns=small, **agent))
    file = choose(name, place.path_in_repo, _files(hub, place.id, commit, folder))
    path = Path(hub.hf_hub_download(place.id, file, revision=commit, tqdm_class=_Bar, **agent))
    _check(name, path)
    return HubFile(
        path=path,
        hub=hub.constants.ENDPOINT,
        repository=place.id,
        revision=commit,
        file=file,
        license=_license(hub, folder / CARD),
    )


def _files(hub: Any, repository: str, commit: str, folder: Path) -> list[str]:  # noqa: ANN401
    """The repository's files; of a commit that another program cached, those in the cache."""
    try:
        return [file.path for file in hub.get_cached_repo_tree(repository, revision=commit)]
    except hub.errors.CachedRepoTreeNotFoundError:
        return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def choose(name: str, wanted: str, files: Sequence[str]) -> str:
    """The file that is named, or else the one that holds the weights; raises InputError."""
    weights = sorted(file for file in files if file.endswith(SUFFIXES))
    if wanted in files:
        return wanted
    at_top = [file for file in weights if "/" not in file]
    preferred = [file for file in PREFERRED if file in at_top] or at_top
    if not wanted and preferred and (preferred[0] in PREFERRED or len(preferred) == 1):
        return preferred[0]
    got = f"has no file {wanted}" if wanted else f"has {len(at_top)} files that may be the weights"
    listed = f"one of {shortened(weights)}" if weights else f"a file of {' '.join(SUFFIXES)}"
    raise InputError(name, got, listed, f"name it: {FORM}")


def _check(name: str, path: Path) -> None:
    """Raise Irv2Error for a large file without the hash that the hub states, and remove it.

    The library checks sizes alone. It keeps what Git LFS holds under its sha256.
    """
    kept = path.resolve()
    if SHA256.fullmatch(kept.name) and (found := file_sha256(kept)) != kept.name:
        kept.unlink()
        raise Irv2Error(
            name,
            f"{path.name} came, or was kept, damaged (sha256 {found})",
            f"{kept.name}, as the hub states",
            "it was removed from the cache; import it again",
        )


def _license(hub: Any, card: Path) -> str:  # noqa: ANN401 (a module)
    """The licence that a model card states in its metadata, or nothing."""
    if not card.is_file():
        return ""
    from yaml import YAMLError  # huggingface_hub brings it along

    try:
        stated = hub.metadata_load(card) or {}
    except (YAMLError, ValueError) as error:
        logger.warning("%s: unreadable (%s); the licence is not known", card, one_line(error))
        return ""
    licences = stated.get("license") or ""
    if licences == "other":
        licences = stated.get("license_name") or licences
    return ", ".join(map(str, licences)) if isinstance(licences, list) else str(licences)


class _Bar(ByteProgress):
    """A download's progress, with the interface of a tqdm bar."""

    def __init__(self, *, desc: str, total: int | None, initial: int = 0, **_: object) -> None:
        super().__init__(desc, total or 0, initial)

    def update(self, num_bytes: int) -> None:
        """Count more bytes; fewer where the server sends the file from its start again."""
        self.count(num_bytes)


@contextmanager
def _explained(hub: Any, name: str, place: Any, out: Path) -> Iterator[None]:  # noqa: ANN401
    """Turn the library's errors into one line each."""
    errors, endpoint = hub.errors, hub.constants.ENDPOINT
    token = "a token: hf auth login, or HF_TOKEN"
    page = f"{endpoint}/{place.id}"
    try:
        with explain_full_disk(Path(hub.constants.HF_HUB_CACHE), START_AGAIN):
            yield
    except errors.HFValidationError as error:
        raise UsageError(name, str(error), FORM) from error
    except errors.GatedRepoError as error:
        way_out = f"agree to its terms at {page} and give {token}"
        raise InputError(
            name, "its owner gives it only to those who ask", way_out=way_out
        ) from error
    except errors.RepositoryNotFoundError as error:
        got = f"no such repository at {endpoint}, or a private one"
        raise InputError(name, got, way_out=f"a private one needs {token}") from error
    except errors.RevisionNotFoundError as error:
        got = f"no revision {place.revision}"
        raise InputError(name, got, f"a branch, tag or commit of {page}") from error
    except (errors.HTTPError, errors.RevisionResolutionError, OSError) as error:
        raise_if_stopped()
        if getattr(error, "errno", None) is not None:  # of this machine, such as no permission
            raise
        file, revision = place.path_in_repo or PREFERRED[0], place.revision or "main"
        raise Irv2Error(
            name,
            f"not in the cache and can't be fetched ({error.__cause__ or error})",
            f"a connection to {endpoint}",
            f"or bring {page}/resolve/{revision}/{file} and the {CONFIG} beside it, then: "
            f"irv2 import {PurePosixPath(file).name} -o {out}",
        ) from error
