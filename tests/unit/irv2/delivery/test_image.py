"""A bundle goes to a registry and comes back byte for byte, or not at all."""

import hashlib
import http.server
import io
import json
import os
import re
import resource
import subprocess
import sys
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from process_output import read_line
from project import ROOT
from registry import log_in, needs_registry, password_required, registry
from terminal import run_on_terminal
from tiny_bundle import write_tiny_bundle

from irv2.delivery.image import pull, push
from irv2.delivery.reference import Reference
from irv2.delivery.registry import INDEX, MANIFEST_TYPE, Registry
from irv2.errors import InputError, Irv2Error, UsageError

pytestmark = needs_registry
EMPTY = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
MODELPACK_SCHEMA = ROOT.parent / "shared" / "schemas" / "modelpack" / "config-schema.json"


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with registry(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def bundle(tmp_path) -> Path:
    path = write_tiny_bundle(tmp_path / "tiny.bundle")
    (path / "model.sig").write_text("what lies beside bundle.json comes along")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"tiny.bundle"}


def fetch(running, name: str, path: str) -> bytes:
    accepted = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json"
    request = urllib.request.Request(
        f"http://{running.host}/v2/{name}/{path}", headers={"Accept": accepted}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def layers_of(running, name: str) -> list[dict]:
    index = json.loads(fetch(running, name, "manifests/v1"))
    manifest = json.loads(fetch(running, name, f"manifests/{index['manifests'][0]['digest']}"))
    return manifest["layers"]


def test_a_terminal_shows_how_much_has_gone_and_come(running, bundle, tmp_path, monkeypatch):
    (bundle / "evidence.bin").write_bytes(os.urandom(5_000_000))
    place = f"oci://{running.host}/models/shown:v1"
    irv2 = [sys.executable, "-m", "irv2"]
    monkeypatch.chdir(tmp_path)
    for program, arguments in (("push", [str(bundle), place]), ("pull", [place, "x"])):
        status, _, drawn = run_on_terminal([*irv2, program, *arguments])
        assert status == 0, drawn
        steps = re.findall(rf"{program} {place}: *\d+%\|.*?\| (\d+)/6 ", drawn)
        assert steps[0] == "0"
        assert {*steps} >= {"2", "4"}


def test_a_bundle_comes_back_byte_for_byte_by_tag_and_by_digest(running, bundle, tmp_path):
    tagged = Reference.parse(f"oci://{running.host}/models/whole:v1")
    place = push(bundle, tagged)
    assert place.digest is not None
    for reference, out in ((tagged, tmp_path / "a"), (place, tmp_path / "b")):
        assert pull(reference, out) == place
        assert contents(out) == contents(bundle)
    assert push(bundle, tagged) == place  # nothing in it depends on the time
    with pytest.raises(InputError, match="is there and not empty"):
        pull(place, tmp_path / "a")


def test_a_cluster_can_mount_it_and_modelpack_knows_its_files(running, bundle, tmp_path):
    push(bundle, Reference.parse(f"oci://{running.host}/mounted:v1"))
    index = json.loads(fetch(running, "mounted", "manifests/v1"))
    *images, pack = index["manifests"]
    assert [each["platform"]["architecture"] for each in images] == ["amd64", "arm64"]
    image, model = (
        json.loads(fetch(running, "mounted", f"manifests/{each['digest']}"))
        for each in (images[0], pack)
    )
    rootfs = tmp_path / "rootfs"
    config = json.loads(fetch(running, "mounted", f"blobs/{image['config']['digest']}"))
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in image["layers"]]
    for layer in image["layers"]:
        assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar"
        with tarfile.open(running.blob(layer["digest"])) as tar:
            tar.extractall(rootfs, filter="data")
    assert contents(rootfs / "models") == contents(bundle)

    assert model["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    kinds = {each["annotations"]["org.cncf.model.filepath"]: each for each in model["layers"]}
    weight, other = kinds["model.onnx"]["mediaType"], kinds["bundle.json"]["mediaType"]
    assert weight == "application/vnd.cncf.model.weight.v1.tar"
    assert other == "application/vnd.cncf.model.weight.config.v1.tar"
    assert [each["digest"] for each in model["layers"]] == config["rootfs"]["diff_ids"]
    if MODELPACK_SCHEMA.is_file():
        jsonschema = pytest.importorskip("jsonschema")
        described = json.loads(fetch(running, "mounted", f"blobs/{model['config']['digest']}"))
        jsonschema.validate(described, json.loads(MODELPACK_SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda blob: blob.write_bytes(blob.read_bytes()[:-1] + b"x"), "the registry sent other"),
        (lambda blob: blob.write_bytes(blob.read_bytes()[:-512]), "512 bytes too few"),
        (lambda blob: blob.write_bytes(blob.read_bytes() + b"x"), "1 bytes too many"),
        (lambda blob: blob.unlink(), "is not in the registry"),
    ],
)
def test_a_layer_that_is_not_what_its_digest_says_leaves_nothing(
    running, bundle, tmp_path, damage, problem
):
    name = f"damaged/{problem.replace(' ', '-')}"
    (bundle / "extra.txt").write_text(problem)  # so that the layer is this test's own
    place = push(bundle, Reference.parse(f"oci://{running.host}/{name}:v1"))
    [layer] = [
        each
        for each in layers_of(running, name)
        if each["annotations"]["org.cncf.model.filepath"] == "extra.txt"
    ]
    damage(running.blob(layer["digest"]))
    with pytest.raises(InputError, match=problem):
        pull(place, tmp_path / "out")
    assert left(tmp_path) == set()


class Between(http.server.BaseHTTPRequestHandler):
    """Passes on what the registry answers."""

    upstream = ""

    def do_GET(self):
        headers = {"Accept": self.headers["Accept"] or ""}
        request = urllib.request.Request(f"http://{self.upstream}{self.path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            content = answer.read()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(self.altered(content) if "/blobs/" in self.path else content)

    def log_message(self, *_):
        pass


class CutOff(Between):
    """A connection that breaks in the middle of every layer."""

    def altered(self, content: bytes) -> bytes:
        return content[: len(content) // 2]


class HeldUp(Between):
    """Holds layers back until they are let go, or one is asked for twice; notes what was."""

    asked: list[str]
    is_asked, let_go = threading.Event(), threading.Event()

    def altered(self, content: bytes) -> bytes:
        if self.path in self.asked:
            self.let_go.set()
        self.asked.append(self.path)
        self.is_asked.set()
        assert self.let_go.wait(60)
        return content


@contextmanager
def between(running, handler: type[Between]) -> Iterator[str]:
    """Put a proxy before the registry; yield its HOST:PORT."""
    handler.upstream = running.host
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def test_a_connection_that_is_cut_off_leaves_nothing(running, bundle, tmp_path):
    place = push(bundle, Reference.parse(f"oci://{running.host}/cut:v1"))
    with between(running, CutOff) as host:
        cut = Reference.parse(f"oci://{host}/cut@{place.digest}")
        with pytest.raises(Irv2Error, match="too few"):
            pull(cut, tmp_path / "out")
    assert left(tmp_path) == set()


def test_of_two_that_miss_a_bundle_in_the_cache_one_fetches_and_both_get_it(
    running, bundle, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = push(bundle, Reference.parse(f"oci://{running.host}/twice:v1"))
    HeldUp.asked = []
    with between(running, HeldUp) as host:
        program = (
            "import logging; from irv2.delivery.image import pull_to_cache; "
            "from irv2.delivery.reference import Reference; logging.basicConfig(level='INFO'); "
            f"print(pull_to_cache(Reference.parse('oci://{host}/twice@{place.digest}')))"
        )
        command = [sys.executable, "-c", program]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        first = subprocess.Popen(command, **pipes)
        assert HeldUp.is_asked.wait(60)
        second = subprocess.Popen(command, **pipes)
        assert "another process is fetching it" in read_line(second.stderr)
        HeldUp.let_go.set()
        outputs = [process.communicate(timeout=60) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert contents(Path(outputs[0][0].strip())) == contents(bundle)
    assert len(HeldUp.asked) == len(set(HeldUp.asked))


def test_a_full_disk_leaves_nothing(running, bundle, tmp_path):
    place = push(bundle, Reference.parse(f"oci://{running.host}/full:v1"))
    command = [sys.executable, "-m", "irv2", "pull", str(place), str(tmp_path / "out")]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=100,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.returncode == 1
    assert "can't be written (File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert left(tmp_path) == set()


def test_a_registry_that_is_gone_is_one_line(bundle, tmp_path):
    (tmp_path / "registry").mkdir()
    with registry(tmp_path / "registry") as gone:
        place = push(bundle, Reference.parse(f"oci://{gone.host}/gone:v1"))
    for call in (lambda: pull(place, tmp_path / "out"), lambda: push(bundle, place)):
        with pytest.raises(Irv2Error, match="no answer from the registry"):
            call()
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_or_no_bundle_is_one_line(running, tmp_path):
    with pytest.raises(InputError, match="is not in the registry"):
        pull(Reference.parse(f"oci://{running.host}/nothing:v1"), tmp_path / "out")
    for text in ("oci://host/name", "oci://host/NAME:v1", "host/name:v1", "oci://h/n@sha256:12"):
        with pytest.raises(UsageError, match="no place in a registry"):
            Reference.parse(text)


def put_image(reference: Reference, layers: list[dict]) -> None:
    """Put a manifest there that irv2 push would not make."""
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "layers": layers}
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2}
    config["digest"] = f"sha256:{hashlib.sha256(b'{}').hexdigest()}"
    registry = Registry(reference)
    registry.put_blob(config["digest"], b"{}")
    content = json.dumps(manifest | {"config": config}).encode()
    registry.put_manifest(content, MANIFEST_TYPE, reference.tag)


def test_a_part_of_a_bundle_is_not_taken_for_one(running, bundle, tmp_path):
    push(bundle, Reference.parse(f"oci://{running.host}/part:v1"))
    reference = Reference.parse(f"oci://{running.host}/part:v2")
    put_image(reference, [
        each
        for each in layers_of(running, "part")
        if each["annotations"]["org.cncf.model.filepath"] != "model.onnx"
    ])  # fmt: skip
    with pytest.raises(InputError, match=r"part:v2: is no whole bundle \(is missing\)"):
        pull(reference, tmp_path / "out")
    assert left(tmp_path) == set()


def put_layer(reference: Reference, content: bytes) -> None:
    """Put an image of one layer there."""
    digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
    Registry(reference).put_blob(digest, content)
    layer_type = "application/vnd.oci.image.layer.v1.tar"
    put_image(reference, [{"mediaType": layer_type, "digest": digest, "size": len(content)}])


def packed(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in entries:
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize("name", ["models/../../evil", "/evil", "etc/evil", "models/link"])
def test_a_layer_writes_nowhere_else_and_makes_no_links(running, tmp_path, name):
    entry = tarfile.TarInfo(name)
    if name.endswith("link"):
        entry.type, entry.linkname = tarfile.SYMTYPE, "/etc"
    reference = Reference.parse(f"oci://{running.host}/evil:v1")
    put_layer(reference, packed((entry, b"")))
    with pytest.raises(InputError, match="expected files in models/"):
        pull(reference, tmp_path / "deep" / "out")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def sparse() -> bytes:
    """A file of a gigabyte without content, in a few kilobytes of tar."""
    entry = tarfile.TarInfo("models/large")
    entry.pax_headers = {
        "GNU.sparse.major": "0",
        "GNU.sparse.minor": "1",
        "GNU.sparse.size": str(2**30),
        "GNU.sparse.map": "0,0",
    }
    return packed((entry, b""))


def file_and_folder() -> bytes:
    one, two = tarfile.TarInfo("models/a"), tarfile.TarInfo("models/a/b")
    return packed((one, b"x"), (two, b"x"))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (sparse(), "holds models/large; expected files in models/"),
        (file_and_folder(), "holds 'models/a/b', which can't be written"),
        (packed(*2 * [(tarfile.TarInfo("models/a"), b"x")]), r"'models/a', .* \(File exists\)"),
        (packed((tarfile.TarInfo("models/.layer.tar"), b"x")), r"layer.tar', .* \(File exists\)"),
        (packed((tarfile.TarInfo("models/" + 300 * "x"), b"")), "which can't be written"),
        (packed((tarfile.TarInfo("models/a\0\xe9"), b"")), "which can't be written"),
        (packed((tarfile.TarInfo("models/" + 2000 * "a/" + "x"), b"")), "which can't be written"),
        (packed((tarfile.TarInfo("models/a"), b"x"))[:-10000], "a layer can't be read"),
    ],
    ids=["sparse", "file-and-folder", "twice", "over-itself", "long", "null", "deep", "cut"],
)
def test_a_layer_that_cannot_be_unpacked_is_one_line(running, tmp_path, content, problem):
    reference = Reference.parse(f"oci://{running.host}/odd:v1")
    put_layer(reference, content)
    with pytest.raises(InputError, match=problem):
        pull(reference, tmp_path / "out")
    assert left(tmp_path) == set()


def one_layer(digest: str = EMPTY, size: float = 2) -> bytes:
    return json.dumps({"layers": [{"digest": digest, "size": size, "mediaType": "x.tar"}]}).encode()


def index_of(digest: str) -> bytes:
    return json.dumps({"mediaType": INDEX, "manifests": [{"digest": digest}]}).encode()


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (b"[" * 10**6, "manifest: .*expected JSON"),
        (one_layer() + b" " * 2**22, "a manifest of more than 4 MiB"),
        (one_layer(size=-2), "lacks a layer's size: there is -2"),  # read(-1) would be everything
        (one_layer(size=float("inf")), "lacks a layer's size: there is inf"),
        (one_layer("sha256:../x"), "lacks a digest: there is sha256:../x"),
        (index_of("v2"), "lacks a digest: there is v2"),
    ],
    ids=["nested", "large", "negative", "infinite", "path", "tag"],
)
def test_a_registry_may_answer_anything(manifest, problem, tmp_path):
    Scripted.manifest = manifest
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as server:
        threading.Thread(target=server.serve_forever).start()
        reference = Reference.parse(f"oci://127.0.0.1:{server.server_port}/any:v1")
        try:
            with pytest.raises(InputError, match=problem):
                pull(reference, tmp_path / "out")
        finally:
            server.shutdown()


class Scripted(Between):
    """Gives one manifest to all who ask."""

    manifest = b""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.manifest)))
        self.end_headers()
        self.wfile.write(self.manifest)


def test_docker_configuration_says_who_we_are(bundle, tmp_path, monkeypatch):
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(folder, password_required(folder)) as closed:
        reference = Reference.parse(f"oci://{closed.host}/mine:v1")
        with pytest.raises(Irv2Error, match="docker login"):
            push(bundle, reference)
        log_in(tmp_path, closed.host)
        place = push(bundle, reference)
        pull(place, tmp_path / "out")
        (tmp_path / "config.json").write_text(json.dumps({"credsStore": "test"}))
        helper = tmp_path / "docker-credential-test"
        helper.write_text('#!/bin/sh\necho \'{"Username": "me", "Secret": "secret"}\'\n')
        helper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        assert pull(place, tmp_path / "again") == place
    assert contents(tmp_path / "again") == contents(bundle)
