"""Who gets our password and our token: the registry and the server that it names, nobody else."""

import base64
import functools
import hashlib
import http.server
import json
import ssl
import threading
import urllib.parse
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest
import trustme
from registry import (
    AFAR,
    log_in,
    needs_registry,
    password_required,
    registry,
    write_certificate,
)

from irv2.delivery.reference import Reference
from irv2.delivery.registry import Registry
from irv2.errors import InputError, Irv2Error

CONTENT = b"what lies in the storage"
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
BASIC = "Basic " + base64.b64encode(b"me:secret").decode()


class Handler(http.server.BaseHTTPRequestHandler):
    """A registry that asks for a token, its token server, or the storage that it redirects to."""

    def do_GET(self):
        server, given = self.server, self.headers["Authorization"]
        server.seen.append((self.path.partition("?")[0], given))
        if self.path.startswith("/token"):
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            assert query == {"service": ["s"], "scope": ["repository:n:pull"]}
            ok = given == BASIC
            self.answer(200 if ok else 401, server.token)
        elif self.path.startswith("/v2/") and given != "Bearer t0ken":
            challenge = f'Bearer realm="{server.realm}",service="s",scope="repository:n:pull"'
            self.answer(401, b"", {"WWW-Authenticate": challenge})
        elif self.path.startswith("/v2/"):
            self.answer(307, b"", {"Location": f"http://{server.storage}/data"})
        else:
            self.answer(200, CONTENT)

    def do_HEAD(self):
        self.answer(404, b"")

    def do_POST(self):
        self.answer(202, b"", {"Location": self.server.upload})

    def answer(self, status, content, headers=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def running():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen, server.host = [], f"127.0.0.1:{server.server_port}"
        server.token = json.dumps({"token": "t0ken"}).encode()
        server.realm, server.storage = f"http://{server.host}/token", server.host
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


@pytest.fixture
def servers(tmp_path, monkeypatch):
    """A registry and the storage elsewhere, and docker's configuration for the first."""
    with running() as registry, running() as storage:
        registry.storage = storage.host
        entry = {"auth": base64.b64encode(b"me:secret").decode()}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {registry.host: entry}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        yield registry, storage


def test_a_token_is_fetched_with_the_password_and_never_sent_to_the_storage(servers, tmp_path):
    registry, storage = servers
    client = Registry(Reference.parse(f"oci://{registry.host}/n:v1"))
    client.get_blob(DIGEST, len(CONTENT), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == CONTENT
    blob = f"/v2/n/blobs/{DIGEST}"
    assert registry.seen == [(blob, None), ("/token", BASIC), (blob, "Bearer t0ken")]
    assert storage.seen == [("/data", None)]


def test_who_has_not_logged_in_is_told_to(servers, tmp_path):
    registry, _ = servers
    (tmp_path / "config.json").unlink()
    client = Registry(Reference.parse(f"oci://{registry.host}/n:v1"))
    with pytest.raises(Irv2Error, match=r"no token from .*docker login"):
        client.get_blob(DIGEST, len(CONTENT), tmp_path / "blob")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config.json: can't be read"):
        client.get_blob(DIGEST, len(CONTENT), tmp_path / "blob")


@pytest.mark.parametrize(
    ("token", "problem"),
    [
        (b"[" * 10**5, "no token from"),
        (b"{}", "no token from"),
        (b"7", "no token from"),
        (b'{"token": "a\\nb"}', "no answer from the registry"),
    ],
    ids=["nested", "none", "number", "two-lines"],
)
def test_a_token_server_may_answer_anything(servers, tmp_path, token, problem):
    registry, _ = servers
    registry.token = token
    client = Registry(Reference.parse(f"oci://{registry.host}/n:v1"))
    with pytest.raises(Irv2Error, match=problem):
        client.get_blob(DIGEST, len(CONTENT), tmp_path / "blob")


def test_a_registry_that_sends_an_upload_to_a_file_is_one_line(servers, tmp_path):
    registry, _ = servers
    (tmp_path / "file").touch()
    registry.upload = f"file://{tmp_path / 'file'}#"
    client = Registry(Reference.parse(f"oci://{registry.host}/n:v1"))
    with pytest.raises(Irv2Error, match="the registry sends us to file:"):
        client.put_blob(DIGEST, CONTENT)


@pytest.mark.parametrize(
    ("host", "scheme"),
    [("localhost:5000", "http"), ("127.0.0.1", "http"), ("[::1]:5000", "http"),
     ("127.0.0.1.example.com", "https"), ("example.com:5000", "https")],
)  # fmt: skip
def test_only_this_machine_is_spoken_to_without_tls(host, scheme):
    assert Reference.parse(f"oci://{host}/a/b:v1").url == f"{scheme}://{host}/v2/a/b"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority, tmp_path, monkeypatch) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


class Storage(http.server.SimpleHTTPRequestHandler):
    """Where a registry's files are, without it; notes who asks with what."""

    seen: ClassVar[list[str | None]] = []

    def end_headers(self):
        self.seen.append(self.headers["Authorization"])
        super().end_headers()

    def log_message(self, *_):
        pass


@contextmanager
def storage_over_tls(folder, certificate):
    """Serve a folder at localhost; yields the address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    handler = functools.partial(Storage, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()


@needs_registry
def test_over_tls_a_password_opens_a_registry_and_is_not_told_to_its_storage(
    authority, trusted, tmp_path, monkeypatch
):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    Storage.seen.clear()
    elsewhere = write_certificate(tmp_path / "storage.pem", authority, "localhost")
    own = write_certificate(tmp_path / "registry.pem", authority)
    with storage_over_tls(tmp_path / "storage", elsewhere) as url:
        redirect = f"middleware: {{storage: [{{name: redirect, options: {{baseurl: '{url}'}}}}]}}\n"
        with registry(tmp_path, password_required(tmp_path) + redirect, own, AFAR) as running:
            for password in ("", "wrong"):
                if password:
                    log_in(tmp_path, running.host, password)
                client = Registry(Reference.parse(f"oci://{running.host}/n:v1"))
                with pytest.raises(Irv2Error, match=r"docker login$"):
                    client.put_blob(DIGEST, CONTENT)
            log_in(tmp_path, running.host)
            client = Registry(Reference.parse(f"oci://{running.host}/n:v1"))
            client.put_blob(DIGEST, CONTENT)
            client.get_blob(DIGEST, len(CONTENT), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == CONTENT
    assert Storage.seen == [None]


YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@needs_registry
@pytest.mark.parametrize(
    ("certificate", "problem", "way_out"),
    [
        (lambda path, _: write_certificate(path, trustme.CA()),
         "refused (unable to get local issuer certificate); expected one of an authority that",
         "name the authority's PEM file in SSL_CERT_FILE, which is "),
        (lambda path, ca: write_certificate(path, ca, "registry.example"),
         f"refused (IP address mismatch, certificate is not valid for '{AFAR}')",
         "use a name that it holds"),
        (lambda path, ca: write_certificate(path, ca, until=YESTERDAY),
         "refused (certificate has expired)", "have it renewed"),
    ],
    ids=["authority", "name", "expired"],
)  # fmt: skip
def test_a_certificate_that_must_not_be_believed_is_one_line_with_a_way_out(
    authority, trusted, tmp_path, certificate, problem, way_out
):
    with registry(tmp_path, "", certificate(tmp_path / "c.pem", authority), AFAR) as running:
        client = Registry(Reference.parse(f"oci://{running.host}/n:v1"))
        with pytest.raises(Irv2Error) as refused:
            client.get_manifest("v1")
    assert problem in str(refused.value)
    assert way_out in str(refused.value)
    assert "\n" not in str(refused.value)


@needs_registry
@pytest.mark.parametrize(
    ("is_encrypted", "address", "problem"),
    [
        (True, "127.0.0.1", r"400 Bad Request; if it speaks TLS, give this machine's name"),
        (False, AFAR, "does not speak TLS .*; expected TLS, but for a registry on this machine"),
    ],
)
def test_tls_on_one_side_alone_is_one_line_with_a_way_out(
    authority, tmp_path, is_encrypted, address, problem
):
    certificate = write_certificate(tmp_path / "c.pem", authority) if is_encrypted else None
    with registry(tmp_path, "", certificate, address) as running:
        client = Registry(Reference.parse(f"oci://{running.host}/n:v1"))
        with pytest.raises(Irv2Error, match=problem):
            client.get_manifest("v1")
