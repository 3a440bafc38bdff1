"""The list of all messages: none is missing, and each has a way out."""

import builtins
import re

import click
import pytest
from click.testing import CliRunner
from messages import ROOT, Message, kinds, messages, pattern, sources
from troubleshooting import page

from irv2.cli.main import main
from irv2.errors import Overloaded
from irv2.system.files import GO_ON

# Raised where a caller of ours catches them, so that no user reads their text.
INSIDE = {"Malformed", "DecodeError"}


def at(place: str) -> list[Message]:
    return [message for message in messages() if message.place == place]


def says_something(message: Message) -> bool:
    return not re.fullmatch(r"\{[^{}]*\}", message.got)


def test_every_place_that_makes_an_error_is_listed():
    """Counted in the text of the sources, which are otherwise read as syntax."""
    made = re.compile(rf"(?<![\w.])(?:{'|'.join(kinds())})\(")
    for source in sources():
        place = source.relative_to(ROOT).as_posix()
        if place == "irv2/errors.py":
            continue
        lines = source.read_text().splitlines()
        found = {
            number
            for number, line in enumerate(lines, 1)
            if made.search(line) and not line.lstrip().startswith(("class ", "#", '"""'))
        }
        assert found == {message.line for message in at(place)}, place


def test_whatever_is_raised_by_name_is_listed_or_known():
    """An error of another tree would reach the user as a traceback, and the list would lack it."""
    raised = re.compile(r"^\s*raise (?:\w+\.)?([A-Z]\w+)\(", re.MULTILINE)
    for source in sources():
        for name in raised.findall(source.read_text()):
            known = name in kinds() or name in INSIDE or hasattr(builtins, name)
            assert known or hasattr(click, name) or name == "ReadError", f"{source}: {name}"


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
    found = [each for each in messages() if pattern(each).match(line) and says_something(each)]
    assert found, line
    assert result.exit_code in {each.exit_code for each in found}


def test_a_name_has_the_text_of_its_own_branch():
    found = {each.got: each.way_out for each in at("irv2/commands/eval.py")}
    assert found["{num_processes} processes"] == "leave out torchrun, or unset WORLD_SIZE"
    either = "{both a model and | neither a model nor} --server given"
    assert found[either].startswith("name a checkpoint")


def test_after_branches_a_name_has_the_texts_of_all_and_what_is_not_text_its_name():
    [full] = [each for each in at("irv2/system/files.py") if "can't be written" in each.got]
    assert full.got == "can't be written ({strerror})"
    assert full.expected.startswith("{free space | a limit that allows files of this size | ")
    assert full.way_out.startswith("{free some; then | ")


def test_constants_and_what_each_kind_of_error_adds_are_in_the_texts():
    found = {each.text: each for each in at("irv2/images/decode.py")}
    assert found["image: {width}x{height} pixels"].kind == "ImageError"
    retry = [each for each in messages() if each.kind == Overloaded.__name__]
    assert retry
    assert all(each.way_out == "retry in {retry_after_s} s" for each in retry)
    assert any("exceeds 10000 fields" in each.got for each in at("serve/rpc/reading.py"))
    assert any(GO_ON in each.way_out for each in at("irv2/batch/parts.py"))  # an imported constant
