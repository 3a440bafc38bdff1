"""A Ctrl-C comes through: one line, status 130, whatever libraries make of its exception."""

import ast
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image
from project import ROOT
from tiny_bundle import write_tiny_bundle

from irv2.system.stop import Terminated, raise_if_stopped, unwinding

TOO_WIDE = {"BaseException", "Exception", "RuntimeError", "ImportError", "ModuleNotFoundError"}
# No exception of a signal can arrive here, for the reason given.
NOT_NEEDED = {
    "convert/publish/replace.py": "raises again what is no OSError",
    "convert/onnx/interruptible.py": "hands on what it caught",
    "irv2/batch/servers.py": "in threads, which no signal interrupts",
    "irv2/doctor/probe.py": "in a session of its own, which no Ctrl-C reaches",
    "irv2/client/in_flight.py": "in threads, which no signal interrupts",
    "irv2/cli/program.py": "catches what has come out of `unwinding`",
    "serve/pipeline/engine.py": "on the event loop, where signals are events",
    "serve/pipeline/model.py": "on the event loop",
    "serve/pipeline/request.py": "on the event loop",
    "serve/pipeline/shadow.py": "on the event loop",
    "serve/rpc/calls.py": "on the event loop",
    "serve/rpc/port.py": "on the event loop",
    "serve/server.py": "on the event loop",
    "train/processes.py": "raises again, unless other processes were lost",
}


def send(number: int = signal.SIGINT) -> None:
    """To this very thread: sent to the process, it may come to another and arrive too late."""
    signal.raise_signal(number)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (signal.SIGINT, KeyboardInterrupt),
        (signal.SIGTERM, Terminated),
        (signal.SIGHUP, Terminated),
    ],
)
@pytest.mark.parametrize("made_of_it", [None, ImportError("numpy can't be imported")])
def test_a_signal_comes_out_whatever_a_library_made_of_it(number, expected, made_of_it):
    before = signal.getsignal(number)

    def library() -> None:
        try:
            send(number)
        except BaseException as error:
            if made_of_it:
                raise made_of_it from error

    with pytest.raises(expected), unwinding():
        library()
    assert signal.getsignal(number) == before
    raise_if_stopped()  # it is forgotten


def test_work_does_not_go_on_after_a_library_swallowed_a_signal():
    went_on = []

    def work() -> None:
        try:
            try:
                send()
            except KeyboardInterrupt:
                raise ValueError("a damaged file") from None
        except ValueError:
            raise_if_stopped()
        went_on.append(True)

    with pytest.raises(KeyboardInterrupt), unwinding():
        work()
    assert not went_on


def test_without_a_signal_nothing_is_raised():
    with unwinding():
        raise_if_stopped()
    with pytest.raises(ValueError, match="of its own"), unwinding():
        raise ValueError("of its own")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(number):
    """As of a job that a shell put into the background, or under nohup."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with unwinding():
            send(number)
    finally:
        signal.signal(number, before)


WAITING = """
import os, signal, sys
import click
from irv2.cli.program import Program

@click.command(cls=Program)
def main() -> None:
    os.kill(os.getpid(), int(sys.argv[1]))

main(args=[])
"""


@pytest.mark.parametrize(
    ("number", "name"),
    [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, "SIGHUP")],
)
def test_a_signal_is_one_line_and_its_status(number, name):
    done = subprocess.run(
        [sys.executable, "-c", WAITING, str(int(number))], capture_output=True, text=True
    )
    newline = "\n" if number == signal.SIGINT else ""  # below a terminal's ^C
    assert (done.returncode, done.stderr) == (128 + number, f"{newline}error: stopped by {name}\n")


@pytest.mark.parametrize("closed", ["2>&-", "2>&- >&-", "<&- 2>&-"])
def test_programs_work_with_standard_streams_closed(tmp_path, closed):
    """No file that is opened later takes the number of a closed stream."""
    out = tmp_path / "sample"
    program = f'exec "{sys.executable}" -m irv2 data sample --out "{out}" {closed}'
    done = subprocess.run(["sh", "-c", program], capture_output=True, cwd=ROOT)
    assert done.returncode == 0, done
    assert len(list(out.rglob("*.png"))) == 1797


def wide_handlers(path: Path) -> list[ast.ExceptHandler]:
    handlers = [
        n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ExceptHandler)
    ]
    return [
        handler
        for handler in handlers
        if handler.type is None
        or TOO_WIDE & {name.id for name in ast.walk(handler.type) if isinstance(name, ast.Name)}
    ]


def lets_signals_through(handler: ast.ExceptHandler) -> bool:
    """It asks at once, or raises again what it caught."""
    first, last = handler.body[0], handler.body[-1]
    asks = isinstance(first, ast.Expr) and ast.unparse(first) == "raise_if_stopped()"
    return asks or any(isinstance(n, ast.Raise) and n.exc is None for n in (first, last))


def test_whoever_catches_any_exception_of_a_library_lets_signals_through():
    found = [
        f"{path.relative_to(ROOT)}:{handler.lineno}"
        for folder in ("irv2", "train", "convert", "serve")
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.endswith("_grpc.py") and str(path.relative_to(ROOT)) not in NOT_NEEDED
        for handler in wide_handlers(path)
        if not lets_signals_through(handler)
    ]
    assert not found, "call raise_if_stopped() there first"


# Sends Ctrl-C when `module` is imported, and turns it into an ImportError as numpy does.
INTERRUPTED_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                signal.raise_signal(signal.SIGINT)
            except KeyboardInterrupt as error:
                raise ImportError("can't be imported") from error

sys.meta_path.insert(0, Finder())
sys.argv = ["irv2", *{arguments!r}]
from irv2.__main__ import run
run()
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("click", ["--help"]),
        ("irv2.cli.main", ["--help"]),
        ("irv2.commands.classify", ["classify", "--help"]),
        ("tabulate", ["classify", "--help"]),
        ("irv2.bundle", ["classify", "{image}", "--bundle", "nowhere"]),  # when it is at work
        ("onnxruntime", ["classify", "{image}", "--bundle", "{bundle}"]),
        ("sklearn.datasets", ["data", "sample", "--out", "{folder}/data"]),
    ],
)
def test_ctrl_c_in_an_import_is_one_line(tmp_path, module, arguments):
    image = tmp_path / "a.png"
    Image.new("RGB", (75, 75)).save(image)
    places = {"image": image, "bundle": write_tiny_bundle(tmp_path / "b"), "folder": tmp_path}
    before = sorted(tmp_path.rglob("*"))
    program = INTERRUPTED_IMPORT.format(
        module=module, arguments=[each.format_map(places) for each in arguments]
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (130, "\nerror: stopped by Ctrl-C\n")
    assert sorted(tmp_path.rglob("*")) == before
