"""Libraries that crash, hang or print, each in a process of its own."""

import pytest

from irv2.doctor.children import run_children

MODULES = {
    "well": "print('as some libraries do')",
    "crashes": "import os; os.abort()",
    "fails": "raise ImportError('lib.so: cannot open\\nshared object')",
    "hangs": "import time; time.sleep(600)",
    "exits": "import sys; sys.exit('no licence')",
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_each_gets_an_answer_whatever_the_others_do(modules):
    crash, hang = ("load", "well", "crashes", "fails"), ("load", "fails", "hangs", "well")
    leave = ("load", "exits")
    found = run_children([crash, hang, leave], timeout_s=3)
    assert "error" not in found[crash]["well"]
    assert found[crash]["well"]["place"] == str(modules / "well.py")
    assert found[crash]["crashes"]["error"] == "it ended its process with SIGABRT"
    assert found[crash]["fails"]["error"] == "not tried, since crashes came first"
    assert found[hang]["fails"]["error"].startswith("ImportError: lib.so: cannot open")
    assert "no answer within 3 s" in found[hang]["hangs"]["error"]
    assert found[hang]["well"]["is_late"]
    assert found[leave]["exits"]["error"] == "no licence"
    assert not found[leave]["exits"]["is_late"]


def test_no_time_at_all_is_told_of_each():
    command = ("load", "well", "hangs")
    found = run_children([command], timeout_s=0.001)
    assert all(answer["is_late"] for answer in found[command].values())
