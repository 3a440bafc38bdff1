"""The base of every program: exit statuses, one-line errors, --version, --debug, tables.

Exit status: 0 done, 1 failed, 2 wrong usage or input, 3 parity gate not met,
130 / 143 / 129 stopped by Ctrl-C / SIGTERM / SIGHUP.
"""

import importlib
import io
import json
import logging
import os
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import click
from click.shell_completion import CompletionItem

from irv2 import __version__
from irv2.cli.config import FILE, option_name, read_config, resolved, to_toml, words_from_file
from irv2.errors import EngineError, Irv2Error
from irv2.system.files import NO_ROOM, no_room
from irv2.system.machine import is_first_here, num_cores
from irv2.system.memory import explain_lack_of_memory
from irv2.system.stop import LINES, Terminated, unwinding
from irv2.system.text import one_line

# Set before gRPC is imported: its C core would add its own lines to our one-line errors.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# Set before torch, NumPy and OpenCV are imported: they know nothing of a container's quota.
os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))  # OpenMP, MKL and OpenBLAS
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(min(32, num_cores())))
# Images are decoded in threads or processes of our own; OpenCV's would spin beside them.
os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

F = TypeVar("F", bound=Callable[..., Any])
logger = logging.getLogger(__name__)
MAX_WIDTH = 110  # of help, on terminals that are wider; longer lines are hard to read


class _OneLineErrors(click.Command):
    """A command with --version that fails with one line on stderr and an exit status as above."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 (click's signature)
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--version"], is_flag=True, expose_value=False, is_eager=True, show_default=False,
                callback=_print_version, help="Show the version and exit.",
            )
        )  # fmt: skip
        self.context_settings.setdefault("max_content_width", MAX_WIDTH)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if ctx.resilient_parsing:  # a shell completes: no callback may print, load or connect
            for parameter in self.params:
                parameter.callback = None
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:  # noqa: ANN401 (click's signature)
        if isinstance(sys.stdout, io.TextIOWrapper):  # print file names that are not UTF-8, as `ls`
            sys.stdout.reconfigure(errors="surrogateescape")
        kwargs["standalone_mode"] = False
        try:
            with explain_lack_of_memory():
                super().main(*args, **kwargs)
        except Irv2Error as error:
            _log_traceback()
            _fail(str(error), error.exit_code)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()  # a group called without a program prints its help
            sys.exit(error.exit_code)
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            way_out = f"; see {context.command_path} --help" if context else ""
            _fail(error.format_message().rstrip(".") + way_out, error.exit_code)
        except click.Abort as error:
            if isinstance(error.__cause__, EOFError):  # to click, any means a closed terminal
                raise error.__cause__ from None
            _fail(LINES[signal.SIGINT], 130)
        except Terminated as error:
            _fail(LINES[error.number], 128 + error.number)
        except OSError as error:  # a full disk, no permission; click itself handles `| head`
            _log_traceback()
            _fail(_line_about(error), 1)
        sys.exit(0)


class Program(_OneLineErrors):
    """One program; use as `@click.command(cls=Program)`. Adds --config, --show-config, --debug.

    `sections` are the parts of its help: titles, and the long names of the options under each.
    The options that none names come last. `examples` are command lines.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401 (click's signature)
        sections: Mapping[str, str] | None = None,
        examples: Sequence[str] = (),
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sections, self.examples = sections or {}, examples
        self.context_settings.setdefault("show_default", True)
        config = click.Option(
            ["--config"], type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE", envvar="IRV2_CONFIG", show_envvar=True, expose_value=False,
            is_eager=True, callback=_read_config,
            help="Read options from FILE, which has a table for each program.  "
            "[default: irv2.toml here, if there is one]",
        )  # fmt: skip
        show_config = click.Option(
            ["--show-config"], is_flag=True, expose_value=False, show_default=False,
            help="Print all options with where each comes from, and exit.",
        )  # fmt: skip
        debug = click.Option(
            ["--debug"], is_flag=True, expose_value=False, is_eager=True, show_default=False,
            callback=_configure_logging, help="Log more; give tracebacks of errors.",
        )  # fmt: skip
        # The file is read before any other option is looked at; --version stays the last one.
        self.params = [config, *self.params[:-1], show_config, debug, self.params[-1]]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--show-config" in args and not ctx.resilient_parsing:
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            if given.get("show_config"):  # no other option's value
                self._show_config(ctx, given)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's signature)
        if FILE in ctx.meta and is_first_here():
            logger.info("%s: %s", ctx.meta[FILE], shlex.join(words_from_file(ctx)))
        with unwinding():
            return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {
            option_name(option): record
            for option in self.get_params(ctx)
            if isinstance(option, click.Option) and (record := option.get_help_record(ctx))
        }
        for title, names in self.sections.items():
            with formatter.section(title):
                formatter.write_dl([records.pop(name) for name in names.split()])
        with formatter.section("Other options" if self.sections else "Options"):
            formatter.write_dl(list(records.values()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {example}\n" for example in self.examples))

    def _show_config(self, ctx: click.Context, given: Mapping[str, Any]) -> NoReturn:
        """Print the options before any of them is acted on: no argument is needed for it."""
        self.params[0].handle_parse_result(ctx, given, [])  # --config
        options = resolved(ctx, given)
        is_json = bool(given.get("as_json"))
        click.echo(json.dumps(options, indent=2) if is_json else to_toml(ctx, options))
        ctx.exit()


class ProgramGroup(_OneLineErrors, click.Group):
    """A group of programs under one name."""


class Entry(NamedTuple):
    """A program's module and function, its summary, and the extra whose packages it needs."""

    target: str
    summary: str
    extra: str = ""


class TableGroup(ProgramGroup):
    """A group read from a static table: help imports no program, a call imports only its own."""

    def __init__(self, *args: Any, table: Mapping[str, Entry], title: str, **kwargs: Any) -> None:  # noqa: ANN401 (click's signature)
        super().__init__(*args, **kwargs)
        self._table, self._title = table, title

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module_name, attribute = self._table[cmd_name].target.split(":")
        try:
            command = getattr(importlib.import_module(module_name), attribute)
        except ModuleNotFoundError as error:
            raise self._missing_extra(cmd_name, error) from error
        assert isinstance(command, click.Command)
        command.name = cmd_name  # its function is called main
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 (click's signature)
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:  # for a package imported only when needed
            if ctx.invoked_subcommand is None:
                raise
            raise self._missing_extra(ctx.invoked_subcommand, error) from error

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        programs = [
            CompletionItem(name, help=entry.summary)
            for name, entry in self._table.items()
            if name.startswith(incomplete)
        ]
        return programs + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(self._title):
            formatter.write_dl([(name, entry.summary) for name, entry in self._table.items()])

    def _missing_extra(self, name: str, error: ModuleNotFoundError) -> EngineError:
        """Build the error for a program whose packages are not installed."""
        extra = self._table[name].extra
        way_out = f'pip install "irv2[{extra}]"' if extra else "reinstall irv2"
        package = (error.name or "").partition(".")[0]
        return EngineError(f"irv2 {name}", f"package {package} is not installed", way_out=way_out)


def configure_logging(*, debug: bool, ending: str = "") -> None:
    """Write log lines to stderr, each with this `ending`."""
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.INFO,
        format=("%(asctime)s %(name)s %(levelname)s %(message)s" if debug else "%(message)s")
        + ending,
        stream=sys.stderr,
    )
    for noisy in ("PIL", "matplotlib", "onnxscript", "onnx_ir", "torch", "asyncio", "httpx2"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _read_config(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    read_config(context, path)


def _configure_logging(context: click.Context, _: click.Parameter, debug: bool) -> None:
    configure_logging(debug=debug)


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"irv2, version {__version__}")
        context.exit()


def _log_traceback() -> None:
    if logging.getLogger().isEnabledFor(logging.DEBUG):
        traceback.print_exc()


def _line_about(error: OSError) -> str:
    """Name the file and, where a disk is full, the ways out."""
    if error.errno not in NO_ROOM:
        return f"{error.filename or 'system'}: {error.strerror or error}"
    unnamed = f"standard output or {tempfile.tempdir}" if tempfile.tempdir else "standard output"
    what = error.filename or unnamed  # a temporary file is possible only once its folder is known
    return str(no_room(what, error))


def _fail(line: str, exit_code: int) -> NoReturn:
    line = one_line(" ".join(line.split()))  # click spreads choices; peers send escape sequences
    click.echo(f"error: {line}", err=True)
    sys.exit(exit_code)
