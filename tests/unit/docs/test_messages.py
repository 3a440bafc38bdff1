"""The list of all messages: none is missing, and each has a way out."""

import builtins
import re

import click
import pytest
from click.testing import CliRunner
from messages import Message, kinds, messages, pattern, sources
from troubleshooting import page

from irv2.cli.main import main
from irv2.errors import ImageError, ImageReason, Overloaded

# Raised where a caller of ours catches them, so that no user reads their text.
INSIDE = {"Malformed", "DecodeError"}


def at(place: str) -> list[Message]:
    return [message for message in messages() if message.place == place]


def test_every_place_that_makes_an_error_is_listed():
    """Counted in the text of the sources, which are otherwise read as syntax."""
    made = re.compile(rf"(?<![\w.])(?:{'|'.join(kinds())})\(")
    for source in sources():
        if source.place == "irv2/errors.py":
            continue
        lines = source.path.read_text().splitlines()
        found = {
            number
            for number, line in enumerate(lines, 1)
            if made.search(line) and not line.lstrip().startswith(("class ", "#", '"""'))
        }
        assert found == {message.line for message in at(source.place)}, source.place


def test_whatever_is_raised_by_name_is_listed_or_known():
    """An error of another tree would reach the user as a traceback, and the list would lack it."""
    raised = re.compile(r"^\s*raise (?:\w+\.)?([A-Z]\w+)\(", re.MULTILINE)
    for source in sources():
        for name in raised.findall(source.path.read_text()):
            known = name in kinds() or name in INSIDE or hasattr(builtins, name)
            assert known or hasattr(click, name) or name == "ReadError", f"{source.place}: {name}"


def test_every_message_has_a_way_out():
    without = [f"{each.place}:{each.line}: {each.text}" for each in messages() if not each.advice]
    assert not without


def test_the_page_has_every_message():
    text = page()
    missing = [each.text for each in messages() if each.text not in text]
    assert not missing


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{tmp}"],
        ["classify", "{tmp}/a.jpg"],
        ["data", "split", "{tmp}/none", "{tmp}/out", "--val", "15%"],
        ["push", "{tmp}", "nowhere"],
    ],
)
def test_what_a_program_prints_is_found_in_the_list(arguments, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    asked = [argument.format(tmp=tmp_path) for argument in arguments]
    result = CliRunner().invoke(main, asked)
    line = result.stderr.strip().splitlines()[-1].removeprefix("error: ")
    found = [each for each in messages() if pattern(each).match(line) and "{" not in each.got[:1]]
    assert found, line
    assert result.exit_code in {each.exit_code for each in found}


def test_a_message_has_the_way_out_of_its_own_branch():
    found = {each.got: each.way_out for each in at("irv2/commands/eval.py")}
    assert found["{num_processes} processes"] == "leave out torchrun, or unset WORLD_SIZE"
    assert found["both a model and --server given"].startswith("name a checkpoint")
    files = {each.expected: each.way_out for each in at("irv2/system/files.py")}
    assert files["free space"].startswith("free some")
    assert files["a limit that allows files of this size"].startswith("raise ulimit -f")


def test_texts_are_followed_through_names_helpers_and_alternatives():
    found = {each.text: each for each in at("irv2/images/decode.py")}
    assert found["image: {width}x{height} pixels"].kind == "ImageError"
    retry = [each for each in messages() if each.kind == Overloaded.__name__]
    assert all(each.way_out == "retry in {retry_after_s} s" for each in retry)
    tiff = {each.got for each in at("irv2/images/tiff.py")}
    assert len(tiff) > 3  # one helper makes them all
    assert str(ImageError(ImageReason.EMPTY, "0 bytes", "an image file")) in {
        each.whole for each in at("irv2/images/decode.py")
    }
