"""Every error that the sources can raise, as the user reads it, with its way out.

Found by reading the sources: each place where an error of irv2/errors.py is made is an entry. What
is known only at run time stands in braces, as `{width}`, and so do the words of which a branch
chooses some, as `{free space | a larger limit}`. Names are read where they were bound to a text
before, in the same function or as a constant; nothing is followed into or out of a function.
"""

import ast
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from irv2 import errors

ROOT = Path(__file__).parents[2]
FOLDERS = ("irv2", "train", "convert", "serve")
GENERATED = {"v1", "inference", "reflection"}
PASSED_ON = (
    "The line itself says what is wrong, often in the words of the system, of a library "
    "or of the server that was asked."
)
# For the kinds whose messages may end without one of their own.
WAYS_OUT = {
    "EngineError": "`irv2 doctor` says which libraries and devices work here; the same command "
    "with `--debug` shows where it failed.",
    "RequestError": "Sent again unchanged, the request fails again, unless the server was "
    "starting, stopping or short of time: then it says when to retry "
    "([clients](../serving.md#clients-that-exist)).",
}
LONGEST_CHOICE, LONGEST_NAME = 200, 24  # of what stands in braces; beyond it `{name}` or `{...}`
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SURE = (ast.With, ast.AsyncWith)  # whose statements are executed, as those of if and else
Known = dict[str, str]  # texts by the names that they are bound to


@dataclass(frozen=True, slots=True)
class Message:
    """One text that a user may see."""

    kind: str
    place: str  # the file, from the repository's root
    line: int
    what: str
    got: str
    expected: str
    way_out: str

    @property
    def exit_code(self) -> int:
        return kinds()[self.kind].exit_code

    @property
    def text(self) -> str:
        """What was wrong, which is where a reader begins to search."""
        return f"{self.what}: {self.got}".removesuffix(": ")

    @property
    def advice(self) -> str:
        """The way out as Markdown, empty where neither the message nor its kind has one."""
        expected = f"Expected: {self.expected}." if self.expected else ""
        way_out = f"{self.way_out[0].upper()}{self.way_out[1:]}." if self.way_out else ""
        if expected or way_out:
            return f"{expected} {way_out}".strip()
        if re.fullmatch(r"\{[^{}]*\}", self.got):
            return PASSED_ON
        kind = kinds()[self.kind]
        return next(
            (WAYS_OUT[base.__name__] for base in kind.__mro__ if base.__name__ in WAYS_OUT), ""
        )


@cache
def messages() -> list[Message]:
    """Return every message of the sources, by file and line."""
    return [message for path in sources() for message in _messages_of(path)]


@cache
def kinds() -> dict[str, type[errors.Irv2Error]]:
    """Return the errors by name; those defined elsewhere count as what they are derived from."""
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.Irv2Error)
    }
    for node in (node for path in sources() for node in ast.walk(_parsed(path))):
        if isinstance(node, ast.ClassDef):
            for base in map(_name_of, node.bases):
                if base in found:
                    found.setdefault(node.name, found[base])
    return found


@cache
def sources() -> list[Path]:
    """Return the modules of the core and the stages; `irv2`/STAGE is a link, not followed."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in paths if not GENERATED & set(path.parts)]


def pattern(message: Message) -> re.Pattern[str]:
    """Return what matches the printed lines of a message, whatever its placeholders stand for."""
    parts = re.split(r"\{[^{}]+\}", f"{message.what}: {message.got}")
    return re.compile(".+?".join(map(re.escape, parts)), re.DOTALL)


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def _messages_of(path: Path) -> list[Message]:
    if path == Path(errors.__file__):
        return []
    found = []
    scopes = [statement for statement in _parsed(path).body if isinstance(statement, SCOPES)]
    for call, known in _calls(scopes, _constants(path))[0]:
        if (kind := _name_of(call.func)) in kinds():
            named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
            given = inspect.signature(kinds()[kind]).bind(*call.args, **named).arguments
            texts = {part: " ".join(_text(node, known).split()) for part, node in given.items()}
            if kind == "ImageError":
                texts.setdefault("what", "image")
            if "retry_after_s" in texts:
                texts["way_out"] = "retry in {retry_after_s} s"
            parts = (texts.get(part, "") for part in ("what", "got", "expected", "way_out"))
            found.append(Message(kind, path.relative_to(ROOT).as_posix(), call.lineno, *parts))
    return sorted(found, key=lambda message: message.line)


@cache
def _constants(path: Path) -> Known:
    """Return the texts and numbers that have a name in a module, imported ones too."""
    found: Known = {}
    for statement in _parsed(path).body:
        match statement:
            case ast.ImportFrom(module=str(module), names=names) if module.startswith("irv2."):
                other = ROOT.joinpath(*module.split(".")).with_suffix(".py").resolve()
                theirs = _constants(other) if other.is_file() else {}
                found |= {each.name: theirs[each.name] for each in names if each.name in theirs}
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                found[name] = str(value)
    return found


def _calls(block: list[ast.stmt], known: Known) -> tuple[list[tuple[ast.Call, Known]], Known]:
    """Return the calls in a list of statements with what is known there, and what is behind it."""
    calls = []
    for statement in block:
        nodes = list(_expressions(statement))
        calls += [(node, known) for node in nodes if isinstance(node, ast.Call)]
        texts = dict(_bound(statement, known))
        bound = set(map(_target, nodes))
        known = {name: text for name, text in known.items() if name not in bound} | texts
        if isinstance(statement, SCOPES):
            calls += _calls(statement.body, known)[0]
            continue
        is_left_out = not (isinstance(statement, SURE) or getattr(statement, "orelse", []))
        ends = [known] if is_left_out else []
        for branch in _blocks(statement):
            found, end = _calls(branch, known)
            calls += found
            if not isinstance(branch[-1], ast.Raise | ast.Return | ast.Continue):
                ends.append(end)
        names = {name for end in ends for name in end}
        known = {n: _either([end.get(n, f"{{{n}}}") for end in ends], n) for n in names}
    return calls, known


def _target(node: ast.AST) -> str:
    """The name that a node binds: a variable's or a parameter's."""
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            return name
    return ""


def _blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """Yield the lists of statements in a statement."""
    for owner in [statement, *getattr(statement, "handlers", []), *getattr(statement, "cases", [])]:
        for field in ("body", "orelse", "finalbody"):
            if inner := getattr(owner, field, None):
                yield inner


def _expressions(statement: ast.stmt) -> Iterator[ast.AST]:
    """Yield the nodes of a statement that are not in statements inside it."""
    for child in ast.iter_child_nodes(statement):
        if not isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield from ast.walk(child)


def _bound(statement: ast.stmt, known: Known) -> Iterator[tuple[str, str]]:
    """Yield the names that a statement binds to texts."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
            pairs = zip(names, values, strict=False)
        case ast.Assign(targets=[name], value=value):
            pairs = zip([name], [value], strict=True)
        case _:
            return
    for name, value in pairs:
        if isinstance(name, ast.Name) and _is_text(value):
            yield name.id, _text(value, known)


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(op=ast.Add(), left=one, right=other) | ast.IfExp(body=one, orelse=other):
            return _is_text(one) or _is_text(other)
    return False


def _text(node: ast.expr, known: Known) -> str:
    """Return what an expression says, with braces around what is not known."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, known) for part in parts)
        case ast.FormattedValue(value=value):
            return _text(value, known)
        case ast.BinOp(left=left, right=right) if _is_text(node):
            return _text(left, known) + _text(right, known)
        case ast.IfExp(body=body, orelse=orelse):
            return _either([_text(body, known), _text(orelse, known)])
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"{{{name.strip('_')}}}"
        case ast.Call(func=ast.Name(id="str" | "repr" | "quoted"), args=[argument]):
            return _text(argument, known)
    text = ast.unparse(node)
    return f"{{{text}}}" if len(text) <= LONGEST_NAME and "{" not in text else "{...}"


def _either(texts: list[str], name: str = "...") -> str:
    """Return the alternatives in one pair of braces; the name if they are too long."""
    if len(set(texts)) == 1:
        return texts[0]
    found = " | ".join(_bare(text) for text in dict.fromkeys(texts) if text)
    return f"{{{found if len(found) <= LONGEST_CHOICE else name}}}"


def _bare(text: str) -> str:
    return text.replace("{", "").replace("}", "")


def _name_of(function: ast.expr) -> str:
    return str(getattr(function, "id", getattr(function, "attr", "")))
