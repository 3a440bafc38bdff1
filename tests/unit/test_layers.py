"""Who imports whom: the stages meet in files, and the server and the client do without torch."""

import ast
import graphlib
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
    "irv2.train.finetune_cli",  # or its help would take seconds
]


# What each room, or file beside the rooms, may import: what is named before it.
FLOORS = {
    "irv2": "errors types block_names network_config system manifest results ledger images "
    "protocol model checkpoint runners bundle data measures trust delivery evaluate self_test "
    "client evaluate_server batch doctor report cli bench commands __main__",
    "train": "settings processes data learner curves run divergence validation signals loop start "
    "finetune defaults cli finetune_cli bench",
    "convert": "provenance engine importing onnx gate publish inspect candidate export verify "
    "rebuild verify_server cli bench",
    "serve": "process access options operations pipeline rpc rest front_ends reload server "
    "cli bench",
}


def sources(folder: str) -> list[Path]:
    """The modules of the core or of a stage; `irv2`/STAGE is a link, which is not followed."""
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"{folder}/ has no modules"
    return [
        path for path in found if not {"v1", "inference", "reflection"} & set(path.parts)
    ]  # generated


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("irv2", *parts) if parts[0] in STAGES else parts).removesuffix(".__init__")


def modules(folder: str) -> list[str]:
    return [module_name(path) for path in sources(folder)]


def room_of(name: str, folder: str) -> str:
    """The room in which a module lies, or its own name where it lies beside the rooms."""
    top = "irv2" if folder == "irv2" else f"irv2.{folder}"
    return name.removeprefix(top).lstrip(".").partition(".")[0]


def is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def imported(path: Path) -> Iterator[str]:
    """Every name that a file imports, at any depth of it: modules, and what it takes of them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


PATHS = {module_name(path): path for folder in ("irv2", *STAGES) for path in sources(folder)}
# Of ours alone. A package is imported with each of its modules, which is no import of one by it.
IMPORTS = {name: PATHS.keys() & set(imported(path)) for name, path in PATHS.items()}


@pytest.mark.parametrize("folder", ["irv2", *STAGES])
def test_neither_the_core_nor_a_stage_imports_another_stage(folder):
    forbidden = [f"irv2.{stage}" for stage in STAGES if stage != folder]
    found = {
        f"{name}: {other}"
        for name in modules(folder)
        for other in IMPORTS[name]
        if any(is_in(other, stage) for stage in forbidden)
    }
    assert not found


@pytest.mark.parametrize("folder", FLOORS)
def test_nothing_imports_up(folder):
    """A room, or a file beside the rooms, imports from those that are named before it alone."""
    floor = {room: i for i, room in enumerate(FLOORS[folder].split())}
    rooms = {name: room_of(name, folder) for name in modules(folder)}
    assert set(rooms.values()) == {"", *floor}
    for name, mine in rooms.items():
        for other in IMPORTS[name] & rooms.keys():
            theirs = rooms[other]  # empty for __init__.py, which holds a version at most
            assert theirs in ("", mine) or floor[theirs] < floor[mine], f"{name} imports {other}"


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names them


def test_nothing_outside_the_benchmarks_imports_one():
    """The table of programs names them, so a stage goes with its benchmarks and nothing else."""
    found = {
        f"{name}: {other}"
        for name, others in IMPORTS.items()
        for other in others
        if ".bench" in other and ".bench" not in name
    }
    assert not found


def test_no_test_of_the_core_imports_a_stage():
    helpers = {path.stem: path for path in (ROOT / "tests/helpers").glob("*.py")}
    found = set()
    for path in (ROOT / "tests/unit/irv2").rglob("*.py"):
        mine = set(imported(path))
        reached = mine.union(*(imported(helpers[name]) for name in mine if name in helpers))
        found |= {
            f"{path.relative_to(ROOT)}: {name}"
            for name in reached
            if any(is_in(name, f"irv2.{stage}") for stage in STAGES)
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
# cryptography is for those who use TLS: it takes 11 MB and 40 ms.
for name in ("torch", "onnx", "onnxscript", "sklearn", "matplotlib", "cryptography"):
    sys.modules[name] = None
if {module != "irv2.evaluate"}:  # whose intervals need it
    sys.modules["scipy"] = None
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
