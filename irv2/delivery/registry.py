"""A registry of container images, over HTTP: the few calls of OCI's distribution specification.

github.com/opencontainers/distribution-spec, spec.md; the token of a 401 as docker's registries
give it.
"""

import base64
import hashlib
import http.client
import io
import json
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from irv2.delivery.credentials import credentials
from irv2.delivery.reference import Reference
from irv2.errors import InputError, Irv2Error

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_TIMEOUT_S = 60
_CHUNK = 2**20
_MAX_MANIFEST = 4 * 2**20  # the specification's limit
# OpenSSL's numbers, X509_V_ERR_..., of which Python names none.
_OTHER_NAMES, _OTHER_TIMES = (62, 64), (9, 10)


Tell = Callable[[int], None]  # how many more bytes were sent, fewer where sending begins again


class _NoRedirectedSecrets(urllib.request.HTTPRedirectHandler):
    """Registries send downloads to storage elsewhere, which must not get our token."""

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> Any:  # noqa: ANN401 (urllib's signature)
        new = super().redirect_request(req, *args)
        if new is not None and (new.type, new.host) != (req.type, req.host):
            new.remove_header("Authorization")
        return new


class Registry:
    """One name in a registry. Raises Irv2Error where it can't be reached or refuses."""

    def __init__(self, reference: Reference) -> None:
        self._reference, self._authorization = reference, ""
        self._opener = urllib.request.build_opener(_NoRedirectedSecrets)

    def has_blob(self, digest: str) -> bool:
        """Whether it holds these bytes already."""
        try:
            self._ask("HEAD", f"/blobs/{digest}").close()
        except _NotFoundError:
            return False
        return True

    def put_blob(self, digest: str, content: bytes | Path, tell: Tell = lambda _: None) -> None:
        """Upload bytes or a file, unless they are there."""
        if self.has_blob(digest):
            tell(len(content) if isinstance(content, bytes) else content.stat().st_size)
            return
        with self._ask("POST", "/blobs/uploads/", b"") as begun:
            place = urllib.parse.urljoin(self._reference.url, begun.headers.get("Location", ""))
        joined = "&" if "?" in place else "?"
        headers = {"Content-Type": "application/octet-stream"}
        url = f"{place}{joined}digest={urllib.parse.quote(digest)}"
        if isinstance(content, bytes):
            self._ask("PUT", url, content, headers).close()
        else:
            headers["Content-Length"] = str(content.stat().st_size)
            with _ToldFile(content, tell) as file:
                self._ask("PUT", url, file, headers).close()

    def put_manifest(self, content: bytes, media_type: str, reference: str) -> None:
        """Upload a manifest under a tag or its digest."""
        headers = {"Content-Type": media_type}
        self._ask("PUT", f"/manifests/{reference}", content, headers).close()

    def get_manifest(self, reference: str) -> tuple[dict[str, Any], str]:
        """Return a manifest or index, and its digest, which is checked where it was asked for."""
        headers = {"Accept": f"{INDEX}, {MANIFEST_TYPE}"}
        with self._ask("GET", f"/manifests/{reference}", headers=headers) as answer:
            content = self._read(answer, _MAX_MANIFEST + 1)
        if len(content) > _MAX_MANIFEST:
            got = f"a manifest of more than {_MAX_MANIFEST // 2**20} MiB"
            raise InputError(self._reference, got, "what irv2 push made")
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if reference.startswith("sha256:") and digest != reference:
            raise InputError(self._reference, f"the registry sent {digest[:19]}", reference[:19])
        try:
            manifest = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(self._reference, f"manifest: {error}", "JSON") from error
        if not isinstance(manifest, dict):
            raise InputError(self._reference, "manifest: no JSON object", "an OCI manifest")
        return manifest, digest

    def get_blob(self, digest: str, size: int, path: Path, tell: Tell = lambda _: None) -> None:
        """Write bytes to a file. Raises InputError unless they have this size and digest."""
        found, left = hashlib.sha256(), size
        with self._ask("GET", f"/blobs/{digest}") as answer, path.open("wb") as out:
            while chunk := self._read(answer, min(_CHUNK, left + 1)):
                found.update(chunk)
                out.write(chunk)
                tell(len(chunk))
                left -= len(chunk)
                if left < 0:
                    break
        if left:
            got = f"{abs(left)} bytes too {'few' if left > 0 else 'many'}"
            raise InputError(
                self._reference, f"{digest[:19]}: {got}", f"{size} bytes", "pull again"
            )
        if f"sha256:{found.hexdigest()}" != digest:
            got = f"{digest[:19]}: the registry sent other bytes, sha256:{found.hexdigest()[:12]}"
            raise InputError(self._reference, got, way_out="push it again")

    def _read(self, answer: http.client.HTTPResponse, num_bytes: int) -> bytes:
        try:
            return answer.read(num_bytes)
        except (OSError, http.client.HTTPException) as error:
            raise self._lost(error) from error

    def _ask(
        self,
        method: str,
        place: str,
        body: bytes | IO[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        """Call it; where it asks who we are, say so and call again."""
        url = place if "://" in place else self._reference.url + place
        try:
            return self._call(method, url, body, headers or {})
        except urllib.error.HTTPError as error:
            with error:
                if error.code != 401 or self._authorization:
                    raise self._refused(error) from error
                self._authorization = self._authorize(error.headers.get("WWW-Authenticate", ""))
        if body is not None and not isinstance(body, bytes):
            body.seek(0)
        try:
            return self._call(method, url, body, headers or {})
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from error

    def _call(
        self, method: str, url: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]
    ) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, body, dict(headers), method=method)
        if self._authorization and url.startswith(self._reference.url.partition("/v2/")[0] + "/"):
            request.add_header("Authorization", self._authorization)
        try:
            answer = self._open(request)
        except urllib.error.HTTPError:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a bad token
            raise self._lost(error) from error
        if not isinstance(answer, http.client.HTTPResponse):  # urllib opens files, too
            answer.close()
            raise Irv2Error(self._reference, f"the registry sends us to {url}", "http or https")
        return answer

    def _open(self, request: urllib.request.Request) -> Any:  # noqa: ANN401 (urllib's own)
        """Follow it to the answer. Raises Irv2Error where TLS fails on the way."""
        try:
            return self._opener.open(request, timeout=_TIMEOUT_S)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):
                raise
            raise self._untrusted(error.reason) from error

    def _authorize(self, challenge: str) -> str:
        """Answer a 401: our password, or a token that another server gives for it."""
        known = credentials(self._reference.host)
        basic = "Basic " + base64.b64encode(":".join(known).encode()).decode() if known else ""
        kind, _, rest = challenge.partition(" ")
        if kind.lower() == "basic" and basic:
            return basic
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        scheme = self._reference.url.partition("//")[0]  # no password goes out in plain text
        if kind.lower() != "bearer" or not asked.get("realm", "").startswith(("https:", scheme)):
            raise Irv2Error(self._reference, "the registry asks who we are", way_out="docker login")
        scope = f"repository:{self._reference.name}:pull,push"
        query = {"service": asked.get("service", ""), "scope": asked.get("scope", scope)}
        url = f"{asked['realm']}?{urllib.parse.urlencode(query)}"
        request = urllib.request.Request(url, headers={"Authorization": basic} if basic else {})
        try:
            with self._open(request) as answer:
                given = json.loads(answer.read(_MAX_MANIFEST))
            return f"Bearer {given.get('token') or given['access_token']}"
        except (
            OSError,
            http.client.HTTPException,
            ValueError,
            RecursionError,
            KeyError,
            AttributeError,
            TypeError,
        ) as error:
            raise Irv2Error(
                self._reference, f"no token from {asked['realm']} ({error})", way_out="docker login"
            ) from error

    def _refused(self, error: urllib.error.HTTPError) -> Irv2Error:
        if error.code == 404:
            return _NotFoundError(self._reference, "is not in the registry", "what was pushed")
        way_out = "docker login" if error.code in (401, 403) else ""
        if error.code == 400 and self._reference.url.startswith("http:"):
            way_out = "if it speaks TLS, give this machine's name: localhost is spoken to without"
        return Irv2Error(self._reference, f"the registry says {error.code} {error.reason}",
                         way_out=way_out)  # fmt: skip

    def _untrusted(self, error: ssl.SSLError) -> Irv2Error:
        """A certificate that must not be believed, or a server that has none."""
        if not isinstance(error, ssl.SSLCertVerificationError):
            got = f"the registry does not speak TLS ({error.reason or error})"
            return Irv2Error(self._reference, got, "TLS, but for a registry on this machine")
        if error.verify_code in _OTHER_NAMES:
            expected, way_out = "one for the name that is asked", "use a name that it holds"
        elif error.verify_code in _OTHER_TIMES:
            expected, way_out = "one that is valid now", "have it renewed, or set this clock right"
        else:
            given = os.environ.get("SSL_CERT_FILE", "not set")
            expected = "one of an authority that this machine trusts"
            way_out = f"name the authority's PEM file in SSL_CERT_FILE, which is {given}"
        got = f"the registry's certificate is refused ({error.verify_message.rstrip('.')})"
        return Irv2Error(self._reference, got, expected, way_out)

    def _lost(self, error: Exception) -> Irv2Error:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        return Irv2Error(self._reference, f"no answer from the registry ({reason})",
                         way_out="the same command starts again")  # fmt: skip


class _ToldFile(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, tell: Tell) -> None:
        super().__init__(path)
        self._tell = tell

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, and tell."""
        chunk = super().read(size) or b""
        self._tell(len(chunk))
        return chunk

    def seek(self, position: int, whence: int = 0, /) -> int:
        """Go to a place, and tell how much is read again."""
        before = self.tell()
        self._tell(super().seek(position, whence) - before)
        return self.tell()


class _NotFoundError(InputError):
    """What the registry does not have."""
