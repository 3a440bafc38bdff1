"""A Hugging Face hub on loopback, of as many routes as fetching a file takes.

Large files lie behind a redirect to another host name, as on the hub: the host that stores them
gets no token. Faults are set on the server and happen once.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import torch
from safetensors.torch import save

from irv2.model.build import build
from irv2.network_config import SlimConfig

COMMIT = "c0ffee" * 6 + "c0de"
LARGE = (".safetensors", ".bin")  # are kept by Git LFS
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to this model is restricted."}


def repository_files() -> dict[str, bytes]:
    """What timm has in a repository, of a narrow network of three classes."""
    torch.manual_seed(0)
    network = build(SlimConfig(num_classes=3, blocks=(1, 1, 1), width=0.0625))
    weights = save({name: tensor.clone() for name, tensor in network.state_dict().items()})
    images = {"input_size": [3, 75, 75], "crop_pct": 0.75, "interpolation": "bicubic"}
    config = {
        "architecture": "inception_resnet_v2",
        "num_classes": 3,
        "label_names": ["ant", "bee", "cat"],
        "pretrained_cfg": images,
    }
    return {
        "README.md": b"---\nlicense: apache-2.0\ntags: [timm]\n---\n# Tiny\n",
        "config.json": json.dumps(config).encode(),
        "model.safetensors": weights,
        "pytorch_model.bin": b"another",
        "tf_model.h5": b"another",
    }


class HubEndpoint(ThreadingHTTPServer):
    """One repository of one commit, `main`; `asked` is every request: method, path, headers."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository, self.files = repository, files
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.cut_after: int | None = None  # bytes of the next large file
        self.damages = self.is_gated = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubEndpoint

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, dict(self.headers)))
        api, model = f"/api/models/{self.server.repository}", f"/{self.server.repository}/resolve/"
        if path.startswith("/stored/"):
            self._stored(path.removeprefix("/stored/"))
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._send(200, json.dumps({"id": self.server.repository, "sha": COMMIT}).encode())
        elif path == f"{api}/tree/{COMMIT}":
            self._send(
                200, json.dumps([_entry(*item) for item in self.server.files.items()]).encode()
            )
        elif path.startswith(model):
            self._resolve(*path.removeprefix(model).split("/", 1))
        elif path.startswith(f"{api}/revision/"):
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            self._send(401, headers={"X-Error-Code": "RepoNotFound"})  # as the hub does

    def _resolve(self, revision: str, file: str) -> None:
        server, headers = self.server, {"X-Repo-Commit": COMMIT}
        content = server.files.get(file)
        if revision not in ("main", COMMIT) or content is None:
            self._send(404, headers={"X-Error-Code": "EntryNotFound", **headers})
        elif server.is_gated and file.endswith(LARGE):
            self._send(403 if "authorization" in self.headers else 401, headers=GATED)
        elif file.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            headers |= {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content))}
            stored = f"http://localhost:{server.server_port}/stored/{file}"
            self._send(302, headers={"Location": stored, **headers})
        else:
            etag = hashlib.sha1(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', **headers})

    def _stored(self, file: str) -> None:
        server, content = self.server, self.server.files[file]
        if server.damages:
            server.damages, content = False, content[:-1] + bytes([content[-1] ^ 1])
        begin, total = 0, len(content)
        headers = {"Accept-Ranges": "bytes"}
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{total - 1}/{total}"
        end, server.cut_after = server.cut_after or total, None
        self._send(206 if asked else 200, content[begin:], headers, num_sent=end - begin)

    def _send(
        self,
        status: int,
        content: bytes = b"",
        headers: dict[str, str] | None = None,
        num_sent: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:num_sent])


def _entry(file: str, content: bytes) -> dict[str, object]:
    entry = {
        "type": "file",
        "path": file,
        "size": len(content),
        "oid": hashlib.sha1(content).hexdigest(),
    }
    if file.endswith(LARGE):
        oid = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 130}
    return entry


@contextmanager
def hub_endpoint(repository: str, files: dict[str, bytes]) -> Iterator[HubEndpoint]:
    """Serve the files in the background."""
    with HubEndpoint(repository, files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
