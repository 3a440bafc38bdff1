"""The recording of a terminal: what is drawn there, when, and the picture of it."""

import json
import xml.etree.ElementTree as ET

import pytest
from recording import COLUMNS, IDLE_S, READ_S, lines_of, picture, record

SCRIPT = r"""test -t 1 && stty size
printf 'bar 10%%\rbar 20%%\r       \rdone <é>\n'; sleep 0.05
printf '\033[1m$ %s\033[0m\n' next; printf '%0200d\n' 0"""


@pytest.fixture
def cast(tmp_path):
    path = tmp_path / "new" / "a.cast"
    record(["bash", "-c", SCRIPT], path)
    return path


def test_lines_are_those_that_a_terminal_shows_at_last(cast):
    header, *events = map(json.loads, cast.read_text().splitlines())
    assert (header["version"], header["width"]) == (2, COLUMNS)
    assert all(kind == "o" for _, kind, _ in events)
    seen = [line for _, line in lines_of(cast)]
    assert seen == [f"30 {COLUMNS}", "done <é>", "\x1b[1m$ next\x1b[0m", "0" * 200]


def test_the_picture_has_each_line_and_waits_before_a_command():
    lines = [(0.0, "a"), (10.0, "b & c"), (10.0, "\x1b[1m$ next\x1b[0m"), (10.0, "0" * 200)]
    drawn = picture(lines)
    texts = [each.text for each in ET.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["a", "b & c", "$ next", "0" * COLUMNS]
    assert f"scroll {IDLE_S + READ_S + 3 * READ_S:.1f}s" in drawn


def test_a_command_that_fails_leaves_no_recording(tmp_path):
    with pytest.raises(SystemExit, match="exit status 3"):
        record(["bash", "-c", "exit 3"], tmp_path / "a.cast")
    assert not (tmp_path / "a.cast").exists()
