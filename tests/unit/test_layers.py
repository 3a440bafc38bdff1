"""Who imports whom: the stages meet in files, and the server and the client do without torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from project import ROOT

from irv2.bench.cli import BENCHMARKS
from irv2.cli.main import PROGRAMS

STAGES = ("train", "convert", "serve")
WITHOUT_TORCH = [
    "irv2.bundle",
    "irv2.client.client",
    "irv2.commands.classify",
    "irv2.evaluate",
    "irv2.images.preprocess",
    "irv2.runners.choose",
    "irv2.serve.cli",
    "irv2.serve.server",
]


def sources(folder: str) -> list[Path]:
    """The modules of the core or of a stage; `irv2`/STAGE is a link, which is not followed."""
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"{folder}/ has no modules"
    return found


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("folder", ["irv2", *STAGES])
def test_neither_the_core_nor_a_stage_imports_another_stage(folder):
    forbidden = [*(f"irv2.{stage}" for stage in STAGES if stage != folder), "tests"]
    found = {
        f"{path.relative_to(ROOT)}: {module}"
        for path in sources(folder)
        for module in imported(path)
        if f"{module}.".startswith(tuple(f"{name}." for name in forbidden))
    }
    assert not found


def test_the_core_names_the_stages_in_its_static_tables_alone():
    """By name in a string, as `importlib.import_module` would take it."""
    targets = {entry.target for entry in (*PROGRAMS.values(), *BENCHMARKS.values())}
    stages = tuple(f"irv2.{stage}." for stage in STAGES)
    named = {
        node.value
        for path in sources("irv2")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith(stages)
    }
    assert named == {target for target in targets if target.startswith(stages)}


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


@pytest.mark.parametrize("module", ["irv2", "irv2.errors", "irv2.cli.main", "irv2.cli.program"])
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


@pytest.mark.parametrize("folder", ["irv2", *STAGES])
def test_no_module_prints(folder):
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources(folder)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert not calls
