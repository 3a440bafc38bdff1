"""What Python writes on stderr, after the server took it over."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys, threading, warnings
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
from irv2.serve.operations.logs import log_there, num_lines_lost, take_over_stderr
take_over_stderr(as_json=sys.argv[1] == "json")
log_there()
logging.info("a log line")
print("printed", "in", "pieces", file=sys.stderr)
warnings.warn("a warning")
logging.info("%d", "not a number")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
assert num_lines_lost() == 0
raise ValueError("the last line")
"""


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_all_of_it_is_written_and_as_json_if_asked_for(log_format):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, log_format], capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    if log_format == "json":
        entries = [json.loads(line) for line in lines]
        lines = [entry["message"] for entry in entries]
        assert [entry["level"] for entry in entries[:3]] == ["info", "warning", "warning"]
    assert lines[:2] == ["a log line", "printed in pieces"]
    assert "UserWarning: a warning" in lines[2]
    told = "\n".join(lines)
    assert told.count("ZeroDivisionError: division by zero") == 1
    assert "TypeError: %d format: a real number is required" in told
    assert lines[-1] == "ValueError: the last line"


def test_a_process_that_began_without_stderr_goes_on():
    program = """
import sys
sys.stderr = None
import logging
logging.basicConfig(level=logging.INFO)
from irv2.serve.operations.logs import log_there, num_lines_lost, take_over_stderr
take_over_stderr(as_json=True)
log_there()
logging.info("nobody can read this")
sys.exit(num_lines_lost())
"""
    subprocess.run([sys.executable, "-c", program], check=True)
