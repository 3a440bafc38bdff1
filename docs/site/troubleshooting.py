"""The page "Troubleshooting": every message by the part of the project that it comes from."""

import ast
import itertools
import re
from collections import defaultdict
from pathlib import Path

from messages import ROOT, Message, messages

INTRODUCTION = """# Troubleshooting, by message

Programs fail with one line, `error: WHAT: GOT; expected ...; WAY OUT`, and an exit status. This
page lists every such line of this version, made from the sources. Search it for words of your
message that don't depend on your files. What depends on them stands in braces, as `{width}`.

An option that does not exist or is out of its range, and an argument that names no file, end in
`see irv2 PROGRAM --help`, with exit status 2. `--debug` adds the traceback to any error.
[`irv2 doctor`](../doctor.md) finds what is wrong with the machine, and
[training](../training.md#when-it-goes-wrong) says what to do about a run that learns nothing.
"""


def page() -> str:
    """Return the page "Troubleshooting" in Markdown: messages by the part of the project."""
    rooms = defaultdict[str, list[Message]](list)
    for message in messages():
        rooms[_room(message.place)].append(message)
    return "\n".join([INTRODUCTION, *(_section(room, found) for room, found in rooms.items())])


def _section(room: str, found: list[Message]) -> str:
    title = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text())) or room
    lines = [f"## {re.split(r'[.] | [(]docs/', title.splitlines()[0])[0].rstrip('.')}\n"]
    texts = defaultdict[str, dict[str, None]](dict)  # the same words from several places once
    for message in found:
        texts[message.text][f"{_escaped(message)} Exit status {message.exit_code}."] = None
    for text in sorted(texts, key=str.casefold):
        lines.append(f"{_code(text)}\n: " + "\n\n  ".join(texts[text]) + "\n")
    return "\n".join(lines)


def _escaped(message: Message) -> str:
    """The way out; code in it stays code, the rest is no Markdown. Ours is Markdown already."""
    if not (message.way_out or message.expected):
        return message.advice
    parts = message.advice.split("`")
    plain = (re.sub(r"([\\*_<>\[\]#])", r"\\\1", part) for part in parts[::2])
    return "".join(
        itertools.chain(
            *itertools.zip_longest(plain, (f"`{x}`" for x in parts[1::2]), fillvalue="")
        )
    )


def _room(place: str) -> str:
    folder, *inner = Path(place).parts[:-1]
    return "/".join([folder, *inner[:1]])


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}"
