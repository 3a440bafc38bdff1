"""What a terminal shows of long work, and of the lines that are logged meanwhile."""

import sys

from terminal import run_on_terminal

PROGRAM = """
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


def test_a_line_that_is_logged_meanwhile_is_not_glued_to_the_bar():
    status, _, drawn = run_on_terminal([sys.executable, "-c", PROGRAM])
    assert status == 0
    assert "outer:" in drawn
    plain = drawn.replace("\r\n", "\n").replace("\x1b[A", "")  # which moves from bar to bar
    lines = {line.rpartition("\r")[2] for line in plain.split("\n")}
    assert {"a line", "another", "the last"} <= lines
