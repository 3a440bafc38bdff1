"""A notebook's cells are run in order, in one namespace, and a failing one stops it."""

import json

import pytest
from notebook import fill_in, page, read


def written(path, *sources):
    cells = [{"cell_type": "code", "source": [source], "outputs": []} for source in sources]
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_what_each_cell_prints_is_kept_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.ipynb", "x = 20", "print(x + 1)\nprint('two')")
    fill_in(path)
    first, second = read(path)["cells"]
    assert (first["execution_count"], first["outputs"]) == (1, [])
    assert second["outputs"][0]["text"] == ["21\n", "two\n"]
    assert page(read(path)).endswith(
        "```python\nprint(x + 1)\nprint('two')\n```\n\n```text\n21\ntwo\n```\n"
    )


def test_a_cell_that_fails_ends_the_run_and_leaves_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "a.ipynb", "print('fine')", "1 / 0")
    before = path.read_text()
    with pytest.raises(ZeroDivisionError):
        fill_in(path)
    assert path.read_text() == before
