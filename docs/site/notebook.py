"""docs/notebook.ipynb: run its cells, and make a page of it. python docs/site/notebook.py NOTEBOOK

Runs the cells in the notebook's folder, one after the other, and writes what they print into it. A
cell that fails ends the run with its traceback. What only Jupyter can (magics, widgets) it can't.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    """Return the notebook (nbformat 4)."""
    notebook: dict[str, Any] = json.loads(path.read_text())
    return notebook


def fill_in(path: Path) -> None:
    """Run the cells of a notebook and put their output into the file, as Jupyter would."""
    notebook = read(path)
    os.chdir(path.parent)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(notebook), 1):
        printed = run("".join(cell["source"]), names, f"{path.name}, cell {number}")
        stream = {"name": "stdout", "output_type": "stream", "text": printed}
        cell |= {"execution_count": number, "outputs": [stream] if printed else []}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def code_cells(notebook: dict[str, Any]) -> list[Cell]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(source: str, names: dict[str, Any], place: str) -> list[str]:
    """Run a cell in the notebook's `names`; return the lines that it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(source, place, "exec"), names)
    return printed.getvalue().splitlines(keepends=True)


def page(notebook: dict[str, Any]) -> str:
    """Return the notebook as Markdown: each cell, and below it what it printed."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(f"```python\n{source}\n```" if cell["cell_type"] == "code" else source)
        for output in cell.get("outputs", []):
            parts.append(f"```text\n{''.join(output['text'])}```")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    fill_in(Path(sys.argv[1]).resolve())
