"""irv2.toml: options from a file, what goes before it, and what is wrong with it."""

import json
import tomllib
from pathlib import Path

import click
import pytest

from irv2.cli.options import data_option, json_option
from irv2.cli.program import Program, ProgramGroup


@click.group(cls=ProgramGroup)
def programs() -> None:
    """Stand for `irv2`, with a program whose options have every form."""


@programs.command("cook", cls=Program)
@click.argument("dish")
@data_option
@click.option("--eggs", "num_eggs", type=click.IntRange(1), default=2, help="How many.")
@click.option("--salt/--no-salt", default=None, help="Salt it.")
@click.option("--no-lid", "has_lid", is_flag=True, flag_value=False, default=True, help="Open.")
@click.option("--mean", nargs=3, type=float, help="Three.")
@click.option("--spice", multiple=True, help="Again and again.")
@click.option("--cup", help="Which.  [default: the blue one]")
@json_option
def cook(**options: object) -> None:
    """Print what came of the options, and those of the file as words."""
    from irv2.cli.config import words_from_file

    words = words_from_file(click.get_current_context())
    click.echo(json.dumps(options | {"words": words}, default=str))


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        programs.main(list(arguments), prog_name="irv2")
    return end.value.code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("IRV2_DATA", raising=False)
    return tmp_path


def write(folder: Path, text: str, name: str = "irv2.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_command_line_goes_before_environment_before_file_before_default(
    folder, monkeypatch, capsys
):
    write(folder, '[cook]\neggs = 3\ndata = "file"\ncup = "red"\n')
    monkeypatch.setenv("IRV2_DATA", "environment")
    options = json.loads(run(capsys, "cook", "soup", "--eggs", "4")[1])
    assert (options["num_eggs"], options["data"], options["cup"]) == (4, "environment", "red")
    options = json.loads(run(capsys, "cook", "soup", "--data", "line")[1])
    assert (options["num_eggs"], options["data"], options["salt"]) == (3, "line", None)


def test_another_file_takes_the_place_of_the_one_in_the_working_folder(folder, monkeypatch, capsys):
    write(folder, "[cook]\neggs = 3\n")
    other = write(folder, "[cook]\nspice = ['a b', 'c']\n", "other.toml")
    by_option = json.loads(run(capsys, "cook", "soup", "--config", str(other))[1])
    monkeypatch.setenv("IRV2_CONFIG", str(other))
    assert json.loads(run(capsys, "cook", "soup")[1]) == by_option
    assert (by_option["num_eggs"], by_option["spice"]) == (2, ["a b", "c"])


def test_the_words_of_a_file_do_the_same_on_a_command_line(folder, capsys):
    flags = "salt = false\nno-lid = true\n"
    write(folder, f"[cook]\neggs = 3\n{flags}mean = [1, 2.5, -3e-5]\nspice = ['a b', 'c']\n")
    from_file = json.loads(run(capsys, "cook", "soup")[1])
    write(folder, "")
    typed = json.loads(run(capsys, "cook", "soup", *from_file["words"])[1])
    assert from_file.pop("words") == [
        *("--eggs", "3", "--no-salt", "--no-lid", "--mean", "1", "2.5", "-3e-05"),
        *("--spice", "a b", "--spice", "c"),
    ]
    assert typed.pop("words") == []
    assert typed == from_file
    assert (typed["salt"], typed["has_lid"]) == (False, False)
    write(folder, "[cook]\nno-lid = false\n")
    assert json.loads(run(capsys, "cook", "soup")[1])["has_lid"] is True


def test_a_file_for_other_programs_changes_nothing_and_is_not_named(folder, capsys, caplog):
    write(folder, "[cook]\n")
    with caplog.at_level("INFO"):
        assert run(capsys, "cook", "soup")[0] == 0
    assert not caplog.records
    write(folder, "[cook]\neggs = 3\n")
    with caplog.at_level("INFO"):
        run(capsys, "cook", "soup")
    assert [record.getMessage() for record in caplog.records] == [f"{folder}/irv2.toml: --eggs 3"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[cook", "irv2.toml: not TOML: "),
        ("[cok]", "irv2.toml: cok: no program's table; expected a program's table, as [cook]"),
        ("eggs = 3", "irv2.toml: eggs: no program's table; expected "),
        ("[cook]\negg = 3", "irv2.toml: [cook] egg: no such option; expected eggs; see irv2 cook"),
        ("[cook]\ndish = 'x'", "irv2.toml: [cook] dish: no such option; expected "),
        ("[cook]\nconfig = 'x'", "irv2.toml: [cook] config: no such option; expected "),
        ("[cook]\nno-salt = true", "irv2.toml: [cook] no-salt: no such option; expected salt"),
        ("[cook]\neggs = 'three'", "irv2.toml: [cook] eggs: 'three' is not a valid integer"),
        ("[cook]\neggs = 2.5", "irv2.toml: [cook] eggs: '2.5' is not a valid integer"),
        ("[cook]\neggs = 0", "irv2.toml: [cook] eggs: 0 is not in the range x>=1; see irv2 cook"),
        ("[cook]\neggs = true", "irv2.toml: [cook] eggs: true; expected a single value"),
        ("[cook]\neggs = [1]", "irv2.toml: [cook] eggs: [1]; expected a single value"),
        ("[cook]\neggs = {}", "irv2.toml: [cook] eggs: {}; expected a single value"),
        ("[cook]\ncup = 10:00:00", 'irv2.toml: [cook] cup: "10:00:00"; expected a single value'),
        ("[cook]\nsalt = 1", "irv2.toml: [cook] salt: 1; expected true or false; see irv2 cook"),
        ("[cook]\nspice = 'a'", 'irv2.toml: [cook] spice: "a"; expected a list; see irv2 cook'),
        ("[cook]\nmean = [1]", "irv2.toml: [cook] mean: Takes 3 values but 1 was given"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_one_line_with_the_key(folder, capsys, text, line):
    write(folder, text)
    status, out, err = run(capsys, "cook", "soup")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"error: {line}")


def test_help_and_version_need_no_sound_file(folder, capsys):
    write(folder, "[cook")
    assert run(capsys, "cook", "--help")[0] == 0
    assert run(capsys, "cook", "--version")[0] == 0


def test_show_config_prints_a_file_that_says_where_each_option_comes_from(
    folder, monkeypatch, capsys
):
    write(folder, "[cook]\nspice = ['ä\"b', 'c']\n")
    monkeypatch.setenv("IRV2_DATA", "from environment")
    status, text, _ = run(capsys, "cook", "--eggs", "4", "--show-config")  # no DISH is needed
    assert status == 0
    assert [line.partition("  # ")[::2] for line in text.splitlines()] == [
        ("[cook]", ""),
        ('data = "from environment"', "environment"),
        ("eggs = 4", "command line"),
        ("# salt: not set", ""),
        ("no-lid = false", "default"),
        ("# mean: not set", ""),
        ('spice = ["ä\\"b", "c"]', f"{folder}/irv2.toml"),
        ("# cup: the blue one", ""),
        ("json = false", "default"),
    ]
    as_json = json.loads(run(capsys, "cook", "--show-config", "--json")[1])
    assert as_json["eggs"] == {"value": 2, "source": "default"}
    assert as_json["json"] == {"value": True, "source": "command line"}
    write(folder, text)
    assert tomllib.loads(run(capsys, "cook", "--show-config")[1]) == tomllib.loads(text)
