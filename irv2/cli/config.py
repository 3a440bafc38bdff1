"""Options from a file, irv2.toml: a table for each program, with the options' own names.

What the command line or the environment says goes before it. The file is --config's, or lies in
the working folder and is then named on stderr.
"""

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from irv2.errors import InputError, Irv2Error, UsageError

IN_WORKING_FOLDER = Path("irv2.toml")
FILE = "irv2.cli.config"  # in a context's meta: the file whose options hold
_NEVER = ("config", "show-config", "debug", "version", "help")  # are not set in a file
_SOURCES = {
    ParameterSource.COMMANDLINE: "command line",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT: "default",
}


def option_name(option: click.Parameter) -> str:
    """Return an option's long name, as `max-queue`."""
    return max(option.opts, key=len).lstrip("-")


def read_config(context: click.Context, path: Path | None) -> None:
    """Make the program's table in the file `path`, or in irv2.toml, the defaults of its options.

    Raises UsageError and InputError on a file that can't be read, and on wrong names and values.
    """
    if path is None and not (context.parent and IN_WORKING_FOLDER.is_file()):
        return
    file = path or IN_WORKING_FOLDER
    options = {option_name(option): option for option in _settable(context)}
    values = {}
    for name, value in _table_of(context, file).items():
        what = f"{file}: [{_table_name(context)}] {name}"
        if name not in options:
            raise UsageError(what, "no such option", _nearest(name, options), _see_help(context))
        values[str(options[name].name)] = _checked(context, options[name], value, what)
    if values:
        context.default_map = values
        context.meta[FILE] = file.absolute()


def words_from_file(context: click.Context) -> list[str]:
    """Return the options that hold because of a file, as words of a command line."""
    words: list[str] = []
    for option in _settable(context):
        if context.get_parameter_source(str(option.name)) is ParameterSource.DEFAULT_MAP:
            words += _words(option, context.lookup_default(str(option.name)))
    return words


def resolved(context: click.Context, given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return each option's value and where it comes from; `given` is the parsed command line.

    A value that nothing sets is None. Raises click.BadParameter on one that is wrong.
    """
    found = {}
    for option in _settable(context):
        value, source = option.consume_value(context, given)
        if source is ParameterSource.DEFAULT:
            value = option.to_info_dict()["default"]  # None where there is none
        value = _flipped(option, _plain(option.type_cast_value(context, value)))
        named = _SOURCES.get(source) or str(context.meta[FILE])
        found[option_name(option)] = {"value": value, "source": named}
    return found


def to_toml(context: click.Context, options: Mapping[str, Mapping[str, Any]]) -> str:
    """Return `options` as their table in irv2.toml, with the source of each as a comment."""
    helps = {
        option_name(o): (o.get_help_record(context) or ("", ""))[1] for o in _settable(context)
    }
    lines = [f"[{_table_name(context)}]"]
    for name, option in options.items():
        if option["value"] in (None, []):
            default = re.search(r"\[(?:.*; )?default: ([^\]]*)\]", helps[name])
            lines.append(f"# {name}: " + (default[1] if default else "not set"))
        else:
            text = json.dumps(option["value"], ensure_ascii=False)
            lines.append(f"{name} = {text}  # {option['source']}")
    return "\n".join(lines)


def _settable(context: click.Context) -> Iterator[click.Option]:
    for option in context.command.get_params(context):
        if isinstance(option, click.Option) and option_name(option) not in _NEVER:
            yield option


def _words(option: click.Option, value: Any) -> list[str]:  # noqa: ANN401 (of any option)
    if option.is_flag:
        return (option.opts if _flipped(option, value) else option.secondary_opts)[:1]
    if option.multiple:
        return [word for item in value for word in (f"--{option_name(option)}", item)]
    return [f"--{option_name(option)}", *(value if option.nargs != 1 else [value])]


def _table_name(context: click.Context) -> str:
    return ".".join(context.command_path.split()[1:])


def _table_of(context: click.Context, file: Path) -> dict[str, Any]:
    """Return the program's own table; those on the way to it hold tables of programs alone."""
    if context.parent is None:
        return _read(file)
    group, tables = context.parent.command, _table_of(context.parent, file)
    assert isinstance(group, click.Group)
    names = group.list_commands(context.parent)
    for name, table in tables.items():
        if name not in names or not isinstance(table, dict):
            what = ".".join(filter(None, [_table_name(context.parent), name]))
            expected = f"a program's table, as [{_nearest(name, names)}]"
            raise UsageError(f"{file}: {what}", "no program's table", expected)
    own: dict[str, Any] = tables.get(str(context.info_name), {})
    return own


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            path, f"not TOML: {error}", "lines such as [serve] and threads = 2"
        ) from error


def _checked(context: click.Context, option: click.Option, value: object, what: str) -> object:
    """Return `value` as the command line would have it, in text; flags stay what they are."""
    is_list = option.nargs != 1 or option.multiple
    items = value if isinstance(value, list) else [value]
    kinds = bool if option.is_flag else (str, int, float, list)
    if isinstance(value, list) != is_list or any(
        not isinstance(item, kinds) or isinstance(item, bool) != option.is_flag for item in items
    ):
        expected = "true or false" if option.is_flag else "a list" if is_list else "a single value"
        got = json.dumps(value, default=str)
        raise UsageError(what, got, expected, _see_help(context))
    if option.is_flag:
        return _flipped(option, value)
    texts = _texts(value)
    try:
        if option.is_eager:  # whose callback acts at once
            option.type_cast_value(context, texts)
        else:
            option.process_value(context, texts)
    except click.BadParameter as error:
        raise UsageError(what, error.message.rstrip("."), way_out=_see_help(context)) from error
    except Irv2Error as error:  # of the option's own reading, about the option
        raise UsageError(what, error.got, error.expected, error.way_out) from error
    return texts


def _flipped(option: click.Option, value: object) -> object:
    """Return the other truth of a flag such as --no-page, which sets its variable to false."""
    is_negative = option.is_flag and option.flag_value is False
    return not value if is_negative and isinstance(value, bool) else value


def _texts(value: object) -> object:
    return [_texts(item) for item in value] if isinstance(value, list) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | None) else str(value)


def _nearest(name: str, names: Iterable[str]) -> str:
    return difflib.get_close_matches(name, names, n=1, cutoff=0)[0]


def _see_help(context: click.Context) -> str:
    return f"see {context.command_path} --help"
