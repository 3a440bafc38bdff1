"""Machines on which something is wrong, made for one program: each fault is a real one.

Packages are put in front of the installed ones by PYTHONPATH, disks are mounted where this program
alone sees them, and a driver is a C library that says what an old one would.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

import msgspec
import pytest
from project import ROOT
from tiny_bundle import passed_parity, write_tiny_bundle

from irv2.manifest import MANIFEST, Evidence, manifest_json, read_manifest
from irv2.system.machine import instruction_set


@dataclass
class Machine:
    """The surroundings of one run of `irv2 doctor`. A fault changes some of them."""

    folder: Path
    programs: Path = ROOT  # where irv2 is taken from
    packages: tuple[str, ...] = ("numpy", "protobuf", "msgspec", "onnxruntime", "openvino")
    mounts: list[str] = field(default_factory=list)  # shell commands, as root
    open: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        for place in (self.work, self.site, self.home, self.tmp, self.cache, self.libraries):
            place.mkdir(parents=True)
        write_tiny_bundle(self.bundle)
        with self.open_port() as port:
            self.port = port  # which was free just now

    work = property(lambda self: self.folder / "work")
    site = property(lambda self: self.folder / "site-packages")
    home = property(lambda self: self.folder / "home")
    tmp = property(lambda self: self.folder / "tmp")
    cache = property(lambda self: self.home / "cache" / "irv2")
    libraries = property(lambda self: self.folder / "lib")
    bundle = property(lambda self: self.folder / "tiny.bundle")

    @staticmethod
    @contextlib.contextmanager
    def open_port() -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]

    def doctor(self, *options: object, prefix: tuple[str, ...] = ()) -> dict:
        """Run it and return what it printed, with its exit status as `exit_code`."""
        command = [*prefix, sys.executable, "-m", "irv2", "doctor", self.bundle, "--json"]
        command += ["--listen", f"127.0.0.1:{self.port}", "--timeout-s", "120", *options]
        if self.mounts:
            script = " && ".join([*self.mounts, 'exec "$@"'])
            command = ["unshare", "--mount", "sh", "-c", script, "sh", *command]
        done = subprocess.run(
            [str(each) for each in command],
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert not done.stderr, done.stderr
        return json.loads(done.stdout) | {"exit_code": done.returncode}

    @property
    def environment(self) -> dict[str, str]:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return {
            **mine,
            "PYTHONPATH": f"{self.site}:{self.programs}",
            "LD_LIBRARY_PATH": str(self.libraries),
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.cache.parent),
            "TMPDIR": str(self.tmp),
        }

    def write_requirements(self) -> None:
        """Have irv2 ask for `packages` alone: a run takes a second instead of four."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"].items()
        lines = [(line, "") for line in project["dependencies"]]
        lines += [(line, f'; extra == "{name}"') for name, extra in extras for line in extra]
        asked_for = [
            line + condition
            for line, condition in lines
            if not self.packages or re.match(r"[\w-]+", line).group() in self.packages
        ]
        write_metadata(self.site, "irv2", "0.1.0", *asked_for)


def write_metadata(site: Path, name: str, version: str, *lines: str) -> None:
    """What pip leaves of a package beside its modules."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir()
    required = "".join(f"Requires-Dist: {line}\n" for line in lines)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{required}"
    )


def mirror(source: Path, to: Path) -> None:
    """The same folders with links to the same files."""
    shutil.copytree(
        source, to, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__")
    )


def read_only_cache(machine: Machine) -> None:
    machine.mounts += [
        f"mount --bind {machine.cache} {machine.cache}",
        f"mount -o remount,bind,ro {machine.cache}",
    ]


def full_disk(machine: Machine) -> None:
    machine.mounts.append(f"mount -t tmpfs -o size=64k none {machine.cache}")


def port_in_use(machine: Machine) -> None:
    machine.port = machine.open.enter_context(machine.open_port())


def modules_in_working_folder(machine: Machine) -> None:
    (machine.work / "train.py").write_text("raise SystemExit('imported')")
    (machine.work / "numpy.py").write_text("raise SystemExit('imported')")


def numpy_on_the_path(machine: Machine) -> None:
    (machine.site / "numpy.py").write_text("int32 = int\n")


def no_compiled_kernel(machine: Machine) -> None:
    machine.programs = machine.folder / "programs"
    mirror(ROOT / "irv2", machine.programs / "irv2")
    for library in (machine.programs / "irv2" / "images").glob("_bicubic*.so"):
        library.unlink()


def old_driver(machine: Machine) -> None:
    source = machine.folder / "driver.c"
    source.write_text(
        "int cuDriverGetVersion(int *version) { *version = 12020; return 0; }\n"
        "int cuInit(unsigned flags) { return 0; }\n"
        "int cuDeviceGetCount(int *count) { *count = 0; return 0; }\n"
    )
    library = machine.libraries / "libcuda.so.1"
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    write_metadata(machine.site, "nvidia_cuda_runtime", "13.0.96")


def old_protobuf(machine: Machine) -> None:
    installed = Path(distribution("protobuf").locate_file("google/protobuf"))
    ours = machine.site / "google" / "protobuf"
    mirror(installed, ours)
    versions = ours / "runtime_version.py"
    text = re.sub(r"(MAJOR = )\d+", r"\g<1>5", versions.read_text())
    versions.unlink()
    versions.write_text(text)
    write_metadata(machine.site, "protobuf", "5.29.5")


def both_onnxruntimes(machine: Machine) -> None:
    machine.packages += ("onnxruntime-gpu",)
    write_metadata(machine.site, "onnxruntime_gpu", "1.31.1")


def damaged_onnxruntime(machine: Machine) -> None:
    """The library that does the work is cut off, as by a disk that was full."""
    installed = distribution("onnxruntime")
    mirror(Path(installed.locate_file("onnxruntime")), machine.site / "onnxruntime")
    write_metadata(machine.site, "onnxruntime", installed.version)
    [library] = (machine.site / "onnxruntime" / "capi").glob("onnxruntime_pybind11_state*.so")
    start = library.read_bytes()[: 2**20]
    library.unlink()
    library.write_bytes(start)


def changed_bundle(machine: Machine) -> None:
    with (machine.bundle / "model.onnx").open("ab") as file:
        file.write(b"x")


def bundle_of_another_processor(machine: Machine) -> None:
    elsewhere = "avx2" if instruction_set("openvino-cpu") != "avx2" else "amx"
    evidence = [
        Evidence(
            backend=backend,
            instruction_set=elsewhere,
            threads=2,
            parity=passed_parity(),
            invariance=None,
            images_per_s=1000.0,
        )
        for backend in ("onnxruntime-cpu", "openvino-cpu")
    ]
    rewrite_evidence(machine.bundle, evidence)


def rewrite_evidence(bundle: Path, evidence: list[Evidence]) -> None:
    """Give the bundle's one artefact this evidence."""
    manifest = read_manifest(bundle / MANIFEST)
    [artifact] = manifest.artifacts
    artifact = msgspec.structs.replace(artifact, evidence=evidence)
    manifest = msgspec.structs.replace(manifest, artifacts=[artifact])
    (bundle / MANIFEST).write_bytes(manifest_json(manifest))
