"""The same checkpoint and images give the same files, wherever and however they are exported."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from project import ROOT

BEFORE = ROOT / "tests" / "data" / "before_rooms"
FILES = {"model.onnx", "model.fp16.onnx", "model.bf16.onnx", "model.int8-cpu.onnx",
         "model.int8-trt.onnx"}  # fmt: skip
# ONNX Runtime, which calibrates, takes a thread per core that it may use, whatever OMP_NUM_THREADS.
ON_CORES = """
import os, sys
os.sched_setaffinity(0, map(int, sys.argv.pop(1).split(",")))
from irv2.cli.main import main
main()
"""


def export(place: Path, cores: Iterable[int], **environment: str) -> dict[str, str]:
    """The id and the hashes of the model files, exported in a folder with an empty cache."""
    place.mkdir()
    command = [sys.executable, "-c", ON_CORES, ",".join(map(str, cores)), "export",
               str(BEFORE / "run" / "best.pt"), "--data", str(BEFORE / "data"), "--precision",
               "fp32,fp16,bf16,int8", "--max-batch", "4",
               "--tolerance-top1", "90", "--tolerance-top5", "90", "--max-disagreement", "90",
               "--accept-chance", "--out", "out.bundle"]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=place,
        env={**os.environ, "XDG_CACHE_HOME": str(place / "cache"), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((place / "out.bundle" / "bundle.json").read_text())
    return {"id": manifest["id"], **{a["file"]: a["sha256"] for a in manifest["artifacts"]}}


@pytest.mark.slow
def test_models_and_id_depend_on_neither_place_nor_seed_nor_locale_nor_threads(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    one = {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1", "LC_ALL": "C"}
    first = export(tmp_path / "one", cores[:1], **one)
    assert first.keys() == {"id", *FILES}
    other = tmp_path / "another place, ünother"
    more = {"PYTHONHASHSEED": "2", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}
    assert export(other, cores, OMP_NUM_THREADS=str(len(cores)), **more) == first
