"""Completion in the shells themselves, on a terminal of their own where they need one."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from project import ROOT

from irv2.cli.completion import SCRIPTS

BIN = Path(sys.executable).parent
ESCAPES = re.compile(r".\x08|\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x07|\r")


def needs(shell: str) -> str:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    return shell


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "HOME": str(folder),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }


class Terminal:
    """An interactive shell: `type` answers with what it shows, from there on, until `expected`."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        self._process = subprocess.Popen(
            command, **streams, cwd=folder, env=environment(folder), start_new_session=True
        )
        os.close(theirs)

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, keys: str, expected: str) -> None:
        os.write(self._ours, keys.encode())
        shown, deadline = "", time.monotonic() + 30
        while expected not in ESCAPES.sub("", shown):
            left_s = deadline - time.monotonic()
            assert select.select([self._ours], [], [], max(0, left_s))[0], repr(shown)
            shown += os.read(self._ours, 65536).decode()


def test_every_console_script_is_completed():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert set(scripts) == {"irv2", *(f"irv2-{name}" for name in SCRIPTS)}


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_programs_options_choices_and_files(tmp_path, shell):
    (tmp_path / "model file.bundle").mkdir()
    command = {
        "bash": ["bash", "--norc", "--noprofile", "-i"],
        "zsh": ["zsh", "-f", "-i"],
    }[needs(shell)]
    setup = {"bash": "", "zsh": "autoload -U compinit; compinit -u; "}[shell]
    with Terminal(command, tmp_path) as terminal:
        terminal.type(f'{setup}eval "$(irv2 completion {shell})"; echo rea""dy\n', "ready")
        for keys, expected in {
            "irv2 fine\t": "irv2 finetune ",
            "irv2 train --augm\tarea\t": "irv2 train --augmentation area-crop ",
            "irv2-train --auto-aug\ttri\t": "irv2-train --auto-augment trivial ",
            "irv2-export --calibration-m\tper\t": "irv2-export --calibration-method percentile ",
            "irv2-serve mod\t": "irv2-serve model\\ file.bundle",
        }.items():
            terminal.type(keys, expected)
            terminal.type("\x15", "")  # Ctrl-U empties the line
        terminal.type('echo wel""l\n', "well")


def test_fish_completes_programs_options_choices_and_files(tmp_path):
    (tmp_path / "model.bundle").mkdir()
    questions = {
        "irv2 fine": ["finetune"],
        "irv2-train --auto-aug": ["--auto-augment"],
        "irv2-train --auto-augment tri": ["trivial"],
        "irv2-serve mod": ["model.bundle/"],
    }
    asked = "".join(f"; echo; complete -C '{line}'" for line in questions)
    command = [needs("fish"), "-c", f"irv2 completion fish | source{asked}"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    answers = [answer.split() for answer in done.stdout.split("\n\n")]
    assert [answer[:1] for answer in answers] == list(questions.values())


def asked(line: str, before: str = "pass") -> subprocess.CompletedProcess[str]:
    """What bash is told of the last word of `line`, by a process that runs `before` first."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    _, *program = line.split(" ")[0].split("-")
    code = f"import sys; {before}; import irv2.__main__ as main; main.run(*{program})"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | words | {"_IRV2_COMPLETE": "bash_complete"},
        capture_output=True,
        text=True,
    )


def test_completing_imports_no_heavy_library():
    """But for the measurements, whose modules are about torch."""
    program = """
import sys
for heavy in ("torch", "onnx", "onnxruntime", "tornado", "matplotlib", "scipy"):
    sys.modules[heavy] = None
from click.shell_completion import BashComplete
from irv2.cli.main import PROGRAMS, main
for name in PROGRAMS:
    offered = BashComplete(main, {}, "irv2", "_IRV2_COMPLETE").get_completions([name], "--")
    assert "--help" in [item.value for item in offered], name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_program_without_its_extra_offers_nothing_and_leaves_the_line_clean():
    done = asked("irv2 eval --sp", "sys.modules['numpy'] = None")
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    "line",
    [
        "irv2-serve oci://127.0.0.1:1/no/such@sha256:0 --max-qu",
        "irv2 serve --version --log-format json --gpus all --max-qu",
        "irv2 serve --show-config --config /gone --max-qu",
    ],
)
def test_the_words_before_are_not_acted_on(line):
    done = asked(line)
    assert (done.stdout.split(), done.stderr) == (
        ["plain,--max-queue", "plain,--max-queue-delay-ms"],
        "",
    )
