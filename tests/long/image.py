"""Build the image `serve` with buildah, without a daemon, and run it as a cluster would.

    python tests/long/image.py [--work DIR] [--twice] [--openvino]

Needs root, Linux, buildah and debootstrap, a mirror of Debian and an index of Python packages;
skipped with a reason where the programs are absent. The base bears the official one's name and
holds Debian's Python. The image's own entry point and arguments then run as user 10001 on a
read-only root: the server must get ready, pass the image's health check, classify a picture and end
with SIGTERM. Prints what the image weighs over its base, part by part. Exit status 1 where anything
fails, where a part of the build is left behind, or above 330 MB. --work keeps base and storage for
the next time; --twice builds again and compares every file. --openvino builds the image with that
engine too, which has no bar.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from process_output import read_line
from project import ROOT
from serving_site import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.client import Client

BASE = "docker.io/library/python:3.11-slim"
PACKAGES = "python3,python3-pip,python-is-python3,ca-certificates"
BAR_MB = 330
UID = 10001
LEFT_BEHIND = ("gcc", "cc", "x86_64-linux-gnu-gcc-12")  # compilers
PARTS_SHOWN = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--twice", action="store_true")
    parser.add_argument("--openvino", action="store_true")
    arguments = parser.parse_args()
    absent = [name for name in ("buildah", "debootstrap", "unshare") if not shutil.which(name)]
    if absent or os.geteuid() != 0:
        print(f"skipped: {', '.join(absent) or 'root'} is not here")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        store = Store(arguments.work or Path(folder), arguments.openvino)
        return prove(store, Path(folder), arguments.twice)


def prove(store: "Store", folder: Path, twice: bool) -> int:
    store.make_base()
    base = files_of(store.mount(BASE))
    copy_project(folder / "context")
    image = store.build(folder / "context")
    root = store.mount(image)
    added = {name: fact for name, fact in files_of(root).items() if base.get(name) != fact}
    size_mb = print_parts(added)
    failures = [f"{name}: left behind by the build" for name in leftovers(added)]
    if size_mb > BAR_MB and not store.openvino:
        failures.append(f"{size_mb:.0f} MB over the base; expected {BAR_MB}")
    config = json.loads(store.run("inspect", "--type", "image", image))["Docker"]["config"]
    check_labels(config["Labels"])
    check_bill_of_materials(root, store.openvino)
    serve_and_classify(root, config, folder)
    if twice:
        again = files_of(store.mount(store.build(folder / "context")))
        differing = [name for name in added if again.get(name) != added[name]]
        failures += [f"{name}: differs when it is built again" for name in differing]
    print("\n".join(failures) or "passed")
    return 1 if failures else 0


class Store:
    """buildah with a storage of its own, that runs its steps in a chroot."""

    def __init__(self, work: Path, openvino: bool) -> None:
        self.work, self.openvino = work.resolve(), openvino
        self.work.mkdir(parents=True, exist_ok=True)
        settings = self.work / "storage.conf"
        settings.write_text(
            f'[storage]\ndriver = "overlay"\n'
            f'graphroot = "{self.work}/graph"\nrunroot = "{self.work}/run"\n'
        )
        self.environment = os.environ | {
            "CONTAINERS_STORAGE_CONF": str(settings),
            "BUILDAH_ISOLATION": "chroot",
        }

    def run(self, *arguments: str | Path) -> str:
        command = ["buildah", *map(str, arguments)]
        done = subprocess.run(command, env=self.environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"failed: {' '.join(command)}")
        return done.stdout.strip()

    def make_base(self) -> None:
        """Debian's Python under the official base's name."""
        if BASE in self.run("images", "--format", "{{.Name}}:{{.Tag}}").split():
            return
        system = self.work / "debian"
        if not (system / "usr/bin/python").exists():
            options = ["--variant=minbase", f"--include={PACKAGES}"]
            command = ["debootstrap", *options, "bookworm", system, "http://deb.debian.org/debian"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        container = self.run("from", "scratch")
        self.run("add", container, system, "/")
        self.run("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
        self.run("commit", "--rm", container, BASE)

    def build(self, context: Path) -> str:
        """`make image` as if nothing had been built before; returns the image's name."""
        image = "localhost/irv2:serve"
        arguments = ["--pull=never", "--no-cache"]
        if self.openvino:
            arguments += ["--build-arg", "OPENVINO=1"]
        if authority := os.environ.get("PIP_CERT"):
            shutil.copy(authority, context / "authority.crt")
            arguments += ["--build-arg", "CA_FILE=authority.crt"]
        if index := os.environ.get("PIP_INDEX_URL"):
            arguments += ["--build-arg", f"PIP_INDEX_URL={index}"]
        command = ["make", "--no-print-directory", "image", "BUILDER=buildah", f"IMAGE={image}"]
        facts = ["REVISION=test", "SOURCE_DATE_EPOCH=1700000000"]
        began = time.monotonic()
        subprocess.run(
            [*command, *facts, f"IMAGE_ARGS={' '.join(arguments)}"],
            cwd=context,
            env=self.environment,
            check=True,
        )
        print(f"built in {time.monotonic() - began:.0f} s")
        return image

    def mount(self, image: str) -> Path:
        return Path(self.run("mount", self.run("from", "--pull-never", image)))


def copy_project(context: Path) -> None:
    """The files that git knows, as they are now."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in filter(None, names.split("\0")):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, context / name, follow_symlinks=False)


def files_of(root: Path) -> dict[str, tuple[int, str]]:
    """Every file's size and content (a link's target), by its name in the image."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()
                found[str(path.relative_to(root))] = (status.st_size, digest)
            elif stat.S_ISLNK(status.st_mode):
                found[str(path.relative_to(root))] = (0, str(path.readlink()))
    return found


def print_parts(added: dict[str, tuple[int, str]]) -> float:
    """Print the largest parts, a package or a top folder each; returns the sum in MB."""
    parts: dict[str, float] = {}
    for name, (size, _) in added.items():
        within = name.partition("/site-packages/")[2]
        part = within.partition("/")[0].removesuffix(".libs") if within else name.partition("/")[0]
        parts[part] = parts.get(part, 0) + size / 1e6
    largest = sorted(parts.items(), key=lambda item: -item[1])
    for part, megabytes in largest[:PARTS_SHOWN]:
        print(f"{megabytes:8.1f} MB  {part}")
    print(f"{sum(size for _, size in largest[PARTS_SHOWN:]):8.1f} MB  the rest")
    print(f"{sum(parts.values()):8.1f} MB  over the base")
    return sum(parts.values())


def leftovers(added: dict[str, tuple[int, str]]) -> list[str]:
    """What only the build needs: compilers, pip and its cache, wheels, certificate authorities."""
    return [
        name
        for name in added
        if Path(name).name in LEFT_BEHIND
        or name.startswith(
            ("ca/", "wheel/", "src/", "build/", "sbom/", "requirements/", "tmp/", "image/")
        )
        or name.startswith(("root/.cache/", "var/lib/apt/lists/", "var/cache/"))
        or "/site-packages/pip/" in name
        or name.endswith((".whl", ".crt", "install.sh"))
    ]


def check_labels(labels: dict[str, str]) -> None:
    prefix = "org.opencontainers.image."
    facts = {key.removeprefix(prefix): value for key, value in labels.items()}
    assert facts["title"] == "irv2-serve", facts
    assert facts["revision"] == "test", facts
    assert facts["created"] == "2023-11-14T22:13:20Z", facts
    assert all(facts.values()), facts


def check_bill_of_materials(root: Path, openvino: bool) -> None:
    text = (root / "opt/irv2/sbom.cdx.json").read_text()
    bill = json.loads(text)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    purls = [PackageURL.from_string(c["purl"]) for c in bill["components"] if "purl" in c]
    listed = {purl.name.lower().replace("_", "-") for purl in purls if purl.type == "pypi"}
    installed = {
        path.name.partition("-")[0].lower().replace("_", "-")
        for path in root.glob("opt/irv2/lib/python3*/site-packages/*.dist-info")
    }
    assert listed | {"irv2"} == installed, listed ^ installed
    assert ("openvino" in listed) == openvino, listed
    assert not listed & {"torch", "scipy", "pip", "setuptools"}
    debian = {f"{purl.name} {purl.version}" for purl in purls if purl.type == "deb"}
    show = ["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-Wf", "${Package} ${Version}\n"]
    assert debian == set(subprocess.check_output(show, text=True).splitlines())
    [system] = [c for c in bill["components"] if c["type"] == "operating-system"]
    assert (system["name"], system["version"]) == ("debian", "12"), system
    print(f"sbom.cdx.json: {len(listed)} Python packages, {len(debian)} of Debian")


def serve_and_classify(root: Path, config: dict, folder: Path) -> None:
    """Run the image's own command as its own user on a root that can't be written."""
    bundle = write_tiny_bundle(folder / "tiny.bundle")
    assert config["User"] == str(UID), config["User"]
    for name in ("bundle", "proc", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    mounts = (
        f"mount --bind {root} {root} && mount --bind {bundle} {root}/bundle && "
        f"mount -t proc proc {root}/proc && mount --bind /dev {root}/dev && "
        f"mount -o remount,bind,ro {root} && "
        f'exec chroot --userspec={UID}:{UID} {root} "$@"'
    )
    environment = dict(each.partition("=")[::2] for each in config["Env"]) | {"HOME": "/home/irv2"}
    contained = ["unshare", "--mount", "sh", "-c", mounts, "sh", "env", "-i"]
    contained += [f"{key}={value}" for key, value in environment.items()]
    began = time.monotonic()
    server = subprocess.Popen(
        [*contained, *config["Entrypoint"], *config["Cmd"]], stderr=subprocess.PIPE, text=True
    )
    try:
        lines = []
        while not (lines and lines[-1].startswith("ready ")):
            lines.append(read_line(server.stderr))
            assert lines[-1], "".join(lines)
        print(f"ready after {time.monotonic() - began:.1f} s; {len(lines) - 1} lines before it")
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"\nUid:\t{UID}\t" in status, status
        _, *check = config["Healthcheck"]["Test"]
        subprocess.run([*contained, *check], check=True)
        touch = subprocess.run([*contained, "touch", "/home/irv2/file"], capture_output=True)
        assert b"Read-only file system" in touch.stderr, touch.stderr
        with Client("127.0.0.1:8500") as client:
            (result,) = client.classify([jpeg(0)], timeout_s=30)
        assert result.scores, result
        print(f"classified: {result.scores[0]}")
    finally:
        server.send_signal(signal.SIGTERM)
        _, rest = server.communicate(timeout=60)
    print(rest.strip())
    assert server.returncode == 0, server.returncode


if __name__ == "__main__":
    sys.exit(main())
