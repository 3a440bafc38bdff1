"""What every program's help has: sections, examples that hold, the terminal's width."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from terminal import run_on_terminal

from irv2.bench.cli import BENCHMARKS
from irv2.bench.cli import main as bench
from irv2.cli.completion import SCRIPTS
from irv2.cli.config import option_name
from irv2.cli.main import PROGRAMS, main
from irv2.cli.program import MAX_WIDTH, Program

MAX_OPTIONS = 14  # in one section; more are too many to choose from


def programs() -> Iterator[tuple[str, Program]]:
    for group, table in ((main, PROGRAMS), (bench, BENCHMARKS)):
        for name in table:
            command = group.get_command(click.Context(group), name)
            for leaf in command.commands.values() if name == "data" else [command]:
                if isinstance(leaf, Program):
                    yield name, leaf


def test_a_section_of_help_names_options_that_exist_once_and_not_too_many():
    for title, program in programs():
        names = {option_name(p) for p in program.params if isinstance(p, click.Option)}
        sections = [text.split() for text in program.sections.values()]
        listed = [name for section in sections for name in section]
        assert set(listed) <= names, title
        assert len(listed) == len({*listed}), title
        rest = names - {*listed}
        assert max(map(len, [*sections, rest])) <= MAX_OPTIONS, (title, rest)
        if sections:  # then the last one is for what all programs have
            assert rest <= {"config", "show-config", "json", "debug", "version"}, title


def test_examples_use_what_there_is():
    for example in [example for _, program in programs() for example in program.examples]:
        if example.startswith("eval "):  # of completion; the tests of that run them
            continue
        name, *words = shlex.split(example.partition("  #")[0].partition(" |")[0])
        script, _, program = name.partition("-")
        assert script == "irv2"
        assert not program or program in SCRIPTS
        command, words = main, [program, *words] if program else words
        while isinstance(command, click.Group):
            command, words = command.get_command(click.Context(command), words[0]), words[1:]
        given, left, _ = command.make_parser(click.Context(command)).parse_args(words)
        assert not left, example
        for parameter in command.params:
            is_missing = parameter.required and not given.get(parameter.name)
            assert not is_missing or "--show-config" in words, (example, parameter.name)


def test_every_program_but_the_measurements_has_an_example():
    for group, table in ((main, PROGRAMS), (bench, BENCHMARKS)):
        for name in table:
            program = group.get_command(click.Context(group), name)
            assert isinstance(program, click.Group) or program.examples or group is bench, name


@pytest.mark.parametrize(("columns", "width"), [("60", 60), ("100", 100), ("300", MAX_WIDTH)])
def test_help_is_as_wide_as_the_terminal(columns, width):
    done = subprocess.run(
        [sys.executable, "-m", "irv2", "batch", "--help"],
        env=os.environ | {"COLUMNS": columns},
        capture_output=True,
        text=True,
        check=True,
    )
    text = done.stdout.partition("Examples:")[0]  # which are left as they are, to be copied
    assert width - 12 < max(map(len, text.splitlines())) <= width


def test_nothing_is_coloured(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    _, out, drawn = run_on_terminal([sys.executable, "-m", "irv2", "data", "split", "/gone", "x"])
    assert "error: /gone" in drawn
    assert "\x1b" not in out + drawn


def test_an_error_sends_no_escape_sequence_to_the_terminal_whatever_a_name_holds():
    name = "oci://a\x1b[2K\x9b1Ab\u00e9"
    done = subprocess.run(
        [sys.executable, "-m", "irv2", "pull", name, "x"],
        env=os.environ | {"PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.stderr.startswith(r"error: oci://a\x1b[2K\x9b1Ab" + "\u00e9: no place")
