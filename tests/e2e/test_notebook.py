"""docs/notebook.ipynb runs from its first cell to its last, with a real bundle and server."""

import shutil
import subprocess
import sys
from pathlib import Path

import notebook
import pytest
from project import ROOT

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_and_prints_where_its_kept_output_does(bundle, environment, tmp_path):
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "best.bundle").symlink_to(bundle)
    (tmp_path / "docs").mkdir()
    copy = Path(shutil.copy(NOTEBOOK, tmp_path / "docs"))
    subprocess.run([sys.executable, notebook.__file__, copy], env=environment, check=True)
    kept, fresh = (notebook.code_cells(notebook.read(path)) for path in (NOTEBOOK, copy))
    assert [bool(cell["outputs"]) for cell in kept] == [bool(cell["outputs"]) for cell in fresh]
    assert [cell["execution_count"] for cell in kept] == list(range(1, len(kept) + 1))
    [stream] = fresh[-1]["outputs"]
    assert stream["text"][0].startswith("360 pictures: ")
