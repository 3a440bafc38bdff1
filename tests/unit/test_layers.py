"""Who imports whom: the stages meet in files, and the server and the client do without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from irv2.bench_cli import BENCHMARKS
from irv2.cli import PROGRAMS

ROOT = Path(__file__).parents[2]
# Each package and the packages of this project that it may import.
MAY_IMPORT = {
    "irv2": {"irv2"},
    "train": {"irv2", "train"},
    "convert": {"irv2", "convert"},
    "serve": {"irv2", "serve"},
}
WITHOUT_TORCH = [
    "irv2.bundle",
    "irv2.classify_cli",
    "irv2.client",
    "irv2.evaluate",
    "irv2.preprocess",
    "irv2.runners.choose",
    "serve.cli",
    "serve.server",
]


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"{package}/ has no modules"
    return found


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_it_may(package):
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] | {"tests"}
    found = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(package)
        for module in imported(path)
        if module.partition(".")[0] in forbidden
    }
    assert not found


def test_the_core_names_other_packages_in_its_static_tables_alone():
    """By name in a string, as `importlib.import_module` would take it."""
    targets = {entry.target for entry in (*PROGRAMS.values(), *BENCHMARKS.values())}
    others = tuple(f"{package}." for package in MAY_IMPORT if package != "irv2")
    named = {
        node.value
        for path in sources("irv2")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(others)
    }
    assert named <= targets
    assert {target for target in targets if target.startswith(others)} <= named


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_a_module_of_server_or_client_starts_where_torch_is_missing(module):
    program = f"""
import sys
for name in ("torch", "onnx", "onnxscript", "sklearn", "matplotlib"):
    sys.modules[name] = None
import {module}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["irv2", "irv2.errors", "irv2.cli", "irv2.options"])
def test_the_roots_of_the_core_import_nothing_heavy(module):
    program = f"""
import sys
import {module}
heavy = {{"torch", "numpy", "grpc", "cv2", "PIL", "onnxruntime", "google"}} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "irv2/runners").glob("*.py")), ids=lambda p: p.name)
def test_a_runner_imports_its_engine_only_when_it_is_built(path):
    top_level = {
        alias.name.partition(".")[0]
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    # The reference is the checkpoint in torch; that module is imported where torch is wanted.
    engines = {"onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"}
    assert not top_level & (engines if path.name == "torch.py" else engines | {"torch"})


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_no_module_prints(package):
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not calls
