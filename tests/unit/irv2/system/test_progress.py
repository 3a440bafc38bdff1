"""Bars on a terminal, lines elsewhere, for what takes long; and lines that are logged meanwhile."""

import sys

import pytest
from terminal import run_on_terminal

from irv2.system.files import file_sha256

HASH = """
import sys
from pathlib import Path
from irv2.cli.program import configure_logging
from irv2.system import files, progress
configure_logging(debug=False)
files.HASH_BLOCK_BYTES, progress.DELAY_S = 10**6, float(sys.argv[2])
print(files.file_sha256(Path(sys.argv[1])))
"""


LOGS_MEANWHILE = """
import logging
from irv2.cli.program import configure_logging
from irv2.system.progress import Progress

configure_logging(debug=False)
with Progress("outer", 3) as outer:
    outer.advance(1)
    logging.getLogger("irv2.a").info("a line")
    with Progress("inner", 3) as inner:
        inner.advance(1)
        logging.getLogger("irv2.a").info("another")
    outer.advance(1)
logging.getLogger("irv2.a").info("the last")
"""


@pytest.mark.parametrize("delay_s", [0, 60])
def test_hashing_a_large_file_shows_how_far_it_is_once_it_takes_long(tmp_path, delay_s):
    path = tmp_path / "large"
    path.write_bytes(bytes(3 * 10**6))
    status, sha256, drawn = run_on_terminal([sys.executable, "-c", HASH, str(path), str(delay_s)])
    assert (status, sha256.strip()) == (0, file_sha256(path))
    assert ("large:  67%" in drawn and "2/3" in drawn) if delay_s == 0 else drawn == ""


def test_hashing_writes_lines_where_there_is_no_terminal(tmp_path, monkeypatch, caplog):
    path = tmp_path / "large"
    path.write_bytes(bytes(2 * 10**6))
    monkeypatch.setattr("irv2.system.progress.LINE_EVERY_S", 0)
    monkeypatch.setattr("irv2.system.files.HASH_BLOCK_BYTES", 10**6)
    with caplog.at_level("INFO"):
        file_sha256(path)
    done = [line.partition(" MB,")[0] for line in caplog.messages]
    assert done == [f"hash {path}: 1/2", f"hash {path}: 2/2"]


def test_a_line_that_is_logged_meanwhile_is_not_glued_to_the_bar():
    status, _, drawn = run_on_terminal([sys.executable, "-c", LOGS_MEANWHILE])
    assert status == 0
    assert "outer:" in drawn
    plain = drawn.replace("\r\n", "\n").replace("\x1b[A", "")  # which moves from bar to bar
    lines = {line.rpartition("\r")[2] for line in plain.split("\n")}
    assert {"a line", "another", "the last"} <= lines
