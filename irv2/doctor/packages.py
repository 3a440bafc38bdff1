"""What is installed, by the metadata of packages: nothing is imported."""

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from irv2 import __version__
from irv2.doctor.finding import Finding, note, ok, problem

# As `requires` gives them: "onnxruntime-gpu[cuda,cudnn]<2,>=1.27; extra == 'gpu'".
_REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)(\[[^]]*\])? *(?P<range>[^;]*?) *"
    r"(;.*extra *== *[\"'](?P<extra>[\w-]+)[\"'].*)?"
)
_CLAUSE = re.compile(r"(?P<operator>>=|<) *(?P<version>[\d.]+)")
# Where the module's name does not follow from the package's.
_MODULES = {
    "cuda-python": "cuda.bindings.runtime",
    "googleapis-common-protos": "google.rpc.status_pb2",
    "grpcio": "grpc",
    "grpcio-health-checking": "grpc_health.v1.health",
    "grpcio-reflection": "grpc_reflection.v1alpha.reflection",
    "grpcio-status": "grpc_status.rpc_status",
    "onnxruntime-gpu": "onnxruntime",
    "opencv-python-headless": "cv2",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry-sdk": "opentelemetry.sdk",
    "pillow": "PIL.Image",
    "protobuf": "google.protobuf.message",
    "scikit-learn": "sklearn",
}
# Extras, with the package that must not be installed beside them: both fill the same folder.
_RIVALS = {"cpu": "onnxruntime-gpu", "gpu": "onnxruntime"}
_HIDDEN = {"dev"}  # for those who work on irv2 itself


class Package(NamedTuple):
    """A package that irv2 asks for, and the version that is here; empty where it is missing."""

    name: str
    range: str
    extra: str  # empty for what every program needs
    version: str

    @property
    def module(self) -> str:
        """What is imported of it."""
        return _MODULES.get(self.name, self.name.replace("-", "_"))

    @property
    def fits(self) -> bool:
        """Whether its version is in the range."""
        found = _numbers(self.version)
        clauses = [(each["operator"], _numbers(each["version"])) for each in _clauses(self.range)]
        return all(found >= limit if op == ">=" else found < limit for op, limit in clauses)


def read_packages() -> list[Package]:
    """List what irv2 asks for, by its own metadata; empty if it is not installed."""
    try:
        lines = requires("irv2") or []
    except PackageNotFoundError:
        return []
    packages = []
    for line in lines:
        match = _REQUIREMENT.fullmatch(line)
        assert match, line
        if match["extra"] not in _HIDDEN and match["name"] != "irv2":
            name, extra = match["name"].lower(), match["extra"] or ""
            packages.append(Package(name, match["range"], extra, version_of(name)))
    return packages


def version_of(name: str) -> str:
    """Return the version of a package, empty if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def check_places(packages: list[Package]) -> Iterator[Finding]:
    """Report each package whose module comes from elsewhere than where it is installed."""
    for package in {each.name: each for each in packages if each.version}.values():
        installed = distribution(package.name)
        folder, spec = str(installed.locate_file("")), find_spec(package.module.partition(".")[0])
        place = spec.origin if spec else None  # None of a namespace too
        is_linked = installed.read_text("direct_url.json") is not None  # perhaps to its sources
        if place and not is_linked and not Path(place).is_relative_to(folder):
            found = f"{package.name} is taken from {place}, not from {folder}"
            way_out = "rename or remove that, or take its folder off PYTHONPATH"
            yield problem("libraries", found, way_out)


def check_packages(packages: list[Package]) -> Iterator[Finding]:
    """Compare versions with the ranges that irv2 asks for, package by package, extra by extra."""
    yield ok("irv2", f"{__version__} with Python {platform.python_version()}")
    if not packages:
        found = "not installed, so that its packages and their versions are not known"
        yield note("packages", found, "pip install it from its folder")
    own = [each for each in packages if not each.extra]
    wrong = {each.name: each for each in packages if each.version and not each.fits}
    missing = [each for each in own if not each.version]
    for package in [*missing, *wrong.values()]:
        found = f"{package.name} {package.version or 'is missing'}; expected {package.range}"
        yield problem("packages", found, f'pip install "{package.name}{package.range}"')
    if own and not missing and not wrong:
        yield ok("packages", f"all {len(own)} that irv2 needs, in versions that fit")
    yield from _check_extras(packages)


def _check_extras(packages: list[Package]) -> Iterator[Finding]:
    absent = []
    for extra in dict.fromkeys(each.extra for each in packages if each.extra):
        asked = [each for each in packages if each.extra == extra]
        here = [f"{each.name} {each.version}" for each in asked if each.version]
        missing = [each.name for each in asked if not each.version]
        rival = _RIVALS.get(extra, "")
        has_rival = bool(rival) and bool(version_of(rival))
        if not missing:
            yield ok(f"extra {extra}", ", ".join(here))
        elif here:
            found = f"lacks {', '.join(missing)}; has {', '.join(here)}"
            first = f"pip uninstall {rival} first, then " if has_rival else ""
            install = f'{first}pip install "irv2[{extra}]" if you need it'
            yield note(f"extra {extra}", found, install)
        elif not has_rival:
            absent.append(extra)
    if absent:
        way_out = (
            f'pip install "irv2[{absent[0]}]" adds one; docs/installing.md says what each is for'
        )
        yield note("extras", f"not installed: {', '.join(absent)}", way_out)


def _clauses(range_: str) -> Iterator[re.Match[str]]:
    return _CLAUSE.finditer(range_)


def _numbers(version: str) -> list[int]:
    """The release of a version; zeros at its end make no difference."""
    found = re.match(r"[\d.]*", version)
    numbers = [int(part) for part in found[0].split(".") if part] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return numbers
