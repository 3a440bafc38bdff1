"""Every error that the sources can raise, as the user reads it, with its way out.

Found by reading the sources: each place where an error of irv2/errors.py is made is an entry.
What is known only at run time stands in braces, as `{width}`.
"""

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from irv2 import errors

ROOT = Path(__file__).parents[2]
FOLDERS = ("irv2", "train", "convert", "serve")
GENERATED = {"v1", "inference", "reflection"}
PASSED_ON = "The words are those of the system, of a library or of the server that was asked."
# For the kinds whose messages may end without one of their own.
WAYS_OUT = {
    "EngineError": "`irv2 doctor` says which libraries and devices work here; the same command "
    "with `--debug` shows where it failed.",
    "RequestError": "Sent again unchanged, the request fails again, unless the server was "
    "starting, stopping or short of time: then it says when to retry "
    "([clients](../serving.md#clients-that-exist)).",
}
REST = ("expected", "way_out")
Function = ast.FunctionDef | ast.AsyncFunctionDef
Blocks = tuple[int, ...]  # the lists of statements around a node, by identity, outermost first
MOST_ALTERNATIVES = 12  # of one part; beyond that its name says more
LONGEST_NAME = 24
SHOWS = ("one_line", "quoted", "repr", "sorted", "str")  # functions that give what they are given


class Place(NamedTuple):
    """Where an expression stands, by which its names have a meaning."""

    function: Function | None
    line: int
    blocks: Blocks
    passed: "dict[str, tuple[ast.expr, Place]]" = {}  # noqa: RUF012 (never changed)
    branch: Blocks | None = None  # of several that bind a name, the one that was taken


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
    def whole(self) -> str:
        """The line as it is printed after `error: `."""
        return str(errors.Irv2Error(self.what, self.got, self.expected, self.way_out))

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
    return [message for source in sources() for message in source.messages()]


@cache
def kinds() -> dict[str, type[errors.Irv2Error]]:
    """Return the errors by name; those defined elsewhere count as what they are derived from."""
    found = {
        name: kind
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.Irv2Error)
    }
    for source in sources():
        for name, base in source.classes():
            if base in found and name not in found:
                found[name] = found[base]
    return found


@cache
def sources() -> "list[Source]":
    """Return the modules of the core and the stages; `irv2`/STAGE is a link, not followed."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [Source(path) for path in paths if not GENERATED & set(path.parts)]


class Source:
    """One module, and the texts in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.place = path.relative_to(ROOT).as_posix()
        self._tree = ast.parse(path.read_text())

    def classes(self) -> Iterator[tuple[str, str]]:
        """Yield each class with what it is derived from."""
        for node in ast.walk(self._tree):
            if isinstance(node, ast.ClassDef):
                yield from ((node.name, _name_of(base)) for base in node.bases)

    def messages(self) -> Iterator[Message]:
        """Yield what each construction of an error says, in each wording."""
        for call in self._calls:
            name = _name_of(call.func)
            if name in kinds() and self.path != Path(errors.__file__):
                yield from self._messages_of(name, call)

    def _messages_of(self, kind: str, call: ast.Call) -> Iterator[Message]:
        named = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        given = inspect.signature(kinds()[kind]).bind(*call.args, **named).arguments
        used = {name for node in given.values() for name in _names(node)}
        found: dict[Message, None] = {}  # each wording once
        for place in self._with_branches(self._with_arguments(self._places[call], used), used):
            texts = {part: self._texts(node, place) for part, node in given.items()}
            if kind == "ImageError":
                texts.setdefault("what", ["image"])
            if "retry_after_s" in texts:
                texts["way_out"] = ["retry in {retry_after_s} s"]
            rest = {part: ", or ".join(filter(None, texts.get(part, []))) for part in REST}
            for what, got in itertools.product(texts["what"], texts["got"]):
                line = " ".join(got.split())
                found[Message(kind, self.place, call.lineno, what, line, **rest)] = None
        yield from found

    def _with_arguments(self, place: Place, used: set[str]) -> list[Place]:
        """Return a helper's place once for each call of it in the module, with what is passed."""
        function = place.function
        parameters = [each.arg for each in function.args.args] if function else []
        if not function or not used & set(parameters) - {"self", "cls"}:
            return [place]
        if parameters[0] in ("self", "cls"):
            del parameters[0]
        found = []
        for call in self._calls:
            if _name_of(call.func) == function.name and self._places[call].function != function:
                given = dict(zip(parameters, call.args, strict=False))
                given |= {each.arg: each.value for each in call.keywords if each.arg}
                passed = {name: (node, self._places[call]) for name, node in given.items()}
                found.append(place._replace(passed=passed))
        return found or [place]

    def _with_branches(self, places: list[Place], used: set[str]) -> Iterator[Place]:
        """Yield each place once for each branch before it that gives the names other texts."""
        for place in places:
            bound = [found for name in used if (found := self._bound(name, place))]
            branches = dict.fromkeys(block for found in bound for _, block in found)
            fit = [
                branch
                for branch in branches
                if all(len(found) == 1 or branch in dict(map(reversed, found)) for found in bound)
            ]
            yield from (place._replace(branch=branch) for branch in fit or [None])

    def _bound(self, name: str, place: Place) -> list[tuple[ast.expr, Blocks]]:
        """Return the texts that a name may have at a place, with the blocks that give them."""
        found: list[tuple[ast.expr, Blocks]] = []
        for node, value in reversed(_bindings(place.function, name)):
            blocks = self._places[node].blocks
            if node.lineno >= place.line or not _is_text(value) or name in _names(value):
                continue
            found.append((value, blocks))
            if place.blocks[: len(blocks)] == blocks:  # it replaces what was bound before
                break
        return [each for each in found if each[1] == place.branch] or found

    def _texts(self, node: ast.expr, place: Place) -> list[str]:
        """Return what an expression may say; a placeholder if that is not known."""
        found: list[str] = []
        match node:
            case ast.Constant(value=str(text)):
                found = [text]
            case ast.JoinedStr(values=parts):
                found = _joined([self._texts(part, place) for part in parts])
            case ast.BinOp(op=ast.Add(), left=left, right=right) if _is_text(node):
                found = _joined([self._texts(part, place) for part in (left, right)])
            case ast.IfExp(body=body, orelse=orelse):
                found = [text for part in (body, orelse) for text in self._texts(part, place)]
            case ast.FormattedValue(value=value):
                found = self._texts(value, place)
            case ast.Name(id=name) if name in place.passed and _is_text(place.passed[name][0]):
                found = self._texts(*place.passed[name])
            case ast.Name(id=name):
                found = [
                    t for value, _ in self._bound(name, place) for t in self._texts(value, place)
                ]
                if not found and name in self.constants and not _bindings(place.function, name):
                    found = [self.constants[name]]
        distinct = list(dict.fromkeys(found))
        return distinct if 0 < len(distinct) <= MOST_ALTERNATIVES else [_placeholder(node)]

    @cached_property
    def constants(self) -> dict[str, str]:
        """The texts and numbers that have a name in this module, imported ones too."""
        found = {}
        for node in self._tree.body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    if isinstance(value, ast.Constant):
                        found[name] = str(value.value)
                case ast.ImportFrom(module=str(module), names=names) if module.startswith("irv2."):
                    imported = constants_of(module)
                    found |= {
                        each.name: imported[each.name] for each in names if each.name in imported
                    }
        return found

    @cached_property
    def _calls(self) -> list[ast.Call]:
        return [node for node in self._places if isinstance(node, ast.Call)]

    @cached_property
    def _places(self) -> dict[ast.AST, Place]:
        """Where each statement and expression stands."""
        found: dict[ast.AST, Place] = {}

        def visit(node: ast.AST, function: Function | None, blocks: Blocks) -> None:
            found[node] = Place(function, getattr(node, "lineno", 0), blocks)
            if isinstance(node, Function):
                function = node
            for _, value in ast.iter_fields(node):
                if isinstance(value, ast.AST):
                    visit(value, function, blocks)
                elif isinstance(value, list):
                    is_block = any(isinstance(child, ast.stmt) for child in value)
                    inner = (*blocks, id(value)) if is_block else blocks
                    for child in value:
                        if isinstance(child, ast.AST):
                            visit(child, function, inner)

        visit(self._tree, None, ())
        return found


@cache
def constants_of(module: str) -> dict[str, str]:
    """Return the constants of a module of ours, by its dotted name."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return Source(path.resolve()).constants if path.is_file() else {}


def pattern(message: Message) -> re.Pattern[str]:
    """Return what matches the printed lines of a message, whatever its placeholders stand for."""
    parts = re.split(r"\{[^{}]+\}", f"{message.what}: {message.got}")
    return re.compile(".+?".join(map(re.escape, parts)), re.DOTALL)


def _joined(parts: list[list[str]]) -> list[str]:
    return ["".join(chosen) for chosen in itertools.islice(itertools.product(*parts), 100)]


def _is_text(node: ast.expr) -> bool:
    """Whether an expression is text to be read, not something that is only known at run time."""
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr() | ast.Name():
            return True
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            return any(_is_text(side) and not isinstance(side, ast.Name) for side in (left, right))
        case ast.IfExp(body=body, orelse=orelse):
            return _is_text(body) or _is_text(orelse)
    return False


def _bindings(function: Function | None, name: str) -> list[tuple[ast.AST, ast.expr]]:
    """Return where a function binds a name, and to what, in the order of the lines."""
    return [(node, value) for node, bound, value in _all_bindings(function) if bound == name]


@cache
def _all_bindings(function: Function | None) -> list[tuple[ast.AST, str, ast.expr]]:
    found: list[tuple[ast.AST, str, ast.expr]] = []
    for node in ast.walk(function) if function else ():
        match node:
            case ast.Assign(targets=targets, value=value):
                pairs = [pair for target in targets for pair in _pairs(target, value)]
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                pairs = list(_pairs(target, value))
            case ast.NamedExpr(target=target, value=value):
                pairs = list(_pairs(target, value))
            case _:
                continue
        found += [(node, name, value) for name, value in pairs]
    return sorted(found, key=lambda binding: binding[0].lineno)


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
    match target, value:
        case ast.Name(id=name), _:
            yield name, value
        case ast.Tuple(elts=names), ast.Tuple(elts=values):
            for each, its in zip(names, values, strict=True):
                yield from _pairs(each, its)


def _names(node: ast.AST) -> set[str]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _name_of(function: ast.expr) -> str:
    match function:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _placeholder(node: ast.expr) -> str:
    """Name what stands there at run time: the shortest name that says it."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"{{{name.strip('_')}}}"
        case ast.Call(func=ast.Name(id="len"), args=[counted]):
            return f"{{number of {_placeholder(counted).strip('{}')}}}"
        case ast.FormattedValue(value=value) | ast.Subscript(value=value):
            return _placeholder(value)
        case ast.Call(func=ast.Name(id=name), args=[argument, *_]):
            return _placeholder(argument) if name in SHOWS else f"{{{name.strip('_')}}}"
        case ast.Call(func=ast.Attribute(attr="join"), args=[joined]):
            return _placeholder(joined)
        case ast.Call(func=ast.Attribute(value=value, attr=name), args=arguments):
            return _placeholder(value) if arguments else f"{{{name}}}"
    text = ast.unparse(node)
    return f"{{{text}}}" if len(text) <= LONGEST_NAME and "{" not in text else "{...}"
