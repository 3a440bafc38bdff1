"""The licences of all that the locks name, from the metadata of what is installed.

`python tests/helpers/licenses.py` writes docs/licenses.md.
"""

import re
from importlib.metadata import Distribution, distributions

from project import ROOT

# By their SPDX names; what they ask of us is said in docs/licenses.md.
ALLOWED = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause"),
    *("BSL-1.0", "CC0-1.0", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "ZPL-2.1"),
    "Zlib",
}
# NVIDIA's own terms: in the extras `gpu` and `rtx` alone, fetched by whoever installs those.
NVIDIA = re.compile(r"nvidia-|cuda-toolkit$|tensorrt(-|$)")
# Read by a person, where the metadata say too much: docutils names the GPL of an editor mode that
# lies in its source archive; the wheel is in the public domain, or under the licence here.
READ = {"docutils": "BSD-2-Clause"}
# In no environment of `make setup`: for other systems, and of other locks. As the wheels say.
ELSEWHERE = {
    "chardet": "0BSD",
    "colorama": "BSD-3-Clause",
    "cyclonedx-bom": "Apache-2.0",
    "httpx2-jsfetch": "BSD-3-Clause",
    "lxml": "BSD-3-Clause",
    "onnxruntime-gpu": "MIT",
    "pip-requirements-parser": "MIT",
    "triton": "MIT",
}
# What people wrote before SPDX, in classifiers and in the field for text
WRITTEN = {
    "2-clause BSD License": "BSD-2-Clause",
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
PAGE = ROOT / "docs" / "licenses.md"
BEGIN = "| licence | packages |\n|---|---|\n"


def locked_names() -> set[str]:
    """Every package that a lock names."""
    pins = re.compile(r"^([\w.-]+)==", re.MULTILINE)
    locks = (ROOT / "requirements").glob("*.lock")
    return {plain(name) for lock in locks for name in pins.findall(lock.read_text())}


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def licenses() -> dict[str, str]:
    """The licence of each package of the locks; KeyError names one of which nothing is known."""
    installed = {plain(each.metadata["Name"]): each for each in distributions()}
    return {
        name: READ.get(name) or ("NVIDIA" if NVIDIA.match(name) else of(installed[name])
        if name in installed else ELSEWHERE[name])
        for name in sorted(locked_names())
    }  # fmt: skip


def of(package: Distribution) -> str:
    """An SPDX expression of what a package says of itself."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return WRITTEN.get(expression, expression)
    classifiers = about.get_all("Classifier") or []
    found = [
        each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License :: OSI")
    ]
    stated = found or [(about.get("License") or "unknown").splitlines()[0]]
    return " OR ".join(sorted(WRITTEN.get(each, each) for each in stated))


def parts(expression: str) -> set[str]:
    """The licences in an expression."""
    return {each.strip("() ") for each in re.split(r" AND | OR ", expression)}


def table() -> str:
    """The rows of docs/licenses.md."""
    by_licence: dict[str, list[str]] = {}
    for name, licence in licenses().items():
        by_licence.setdefault(licence, []).append(name)
    return "".join(f"| {key} | {', '.join(names)} |\n" for key, names in sorted(by_licence.items()))


if __name__ == "__main__":
    before, begin, _ = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + begin + table())
