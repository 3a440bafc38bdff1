"""HTML and SVG as trees, from which text and attributes are escaped when they are written.

So no class, file or library can put markup into the page, whatever its name. The page needs no
script and loads nothing: its policy forbids both.
"""

from collections.abc import Iterable, Sequence
from importlib.resources import files
from xml.etree.ElementTree import Element, tostring

from irv2 import __version__
from irv2.system.text import one_line

Child = Element | str
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LACKING = "lacking"  # the class of paragraphs that say what is not there


def tag(name: str, /, *children: Child, **attributes: str | float) -> Element:
    """Build an element; `class_` is the attribute class, and `aria_label` aria-label."""
    element = Element(name)
    for key, value in attributes.items():
        text = f"{value:g}" if isinstance(value, float) else one_line(value)
        element.set(key.rstrip("_").replace("_", "-"), text)
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + one_line(child)
        else:
            last.tail = (last.tail or "") + one_line(child)
    return element


def table(
    caption: str,
    headers: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    numbers: Iterable[int] = (),
    class_: str = "",
) -> Element:
    """Build a table whose first column names its rows; `numbers` are columns set to the right."""
    right = set(numbers)

    def cell(name: str, column: int, child: Child, **attributes: str) -> Element:
        return tag(name, child, **attributes, **({"class_": "number"} if column in right else {}))

    head = [cell("th", i, header, scope="col") for i, header in enumerate(headers)]
    body = [
        tag(
            "tr",
            cell("th", 0, row[0], scope="row"),
            *(cell("td", i, child) for i, child in enumerate(row[1:], 1)),
        )
        for row in rows
    ]
    found = tag(
        "table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body)
    )
    # Wider than a telephone, it scrolls by itself, also with the keyboard.
    classes = f"wide {class_}".strip()
    return tag("div", found, class_=classes, role="group", aria_label=caption, tabindex="0")


def facts(label: str, rows: Iterable[tuple[str, Child]]) -> Element:
    """Build a table of names and values, without a head; only who can't see it gets its label."""
    body = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows]
    return tag("table", tag("tbody", *body), class_="facts", aria_label=label)


def short_facts(rows: Iterable[tuple[str, str]]) -> Element:
    """Build a list of names and values of a word or two, in columns."""
    groups = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows]
    return tag("dl", *groups)


def section(level: int, title: str, *children: Child, id_: str = "") -> Element:
    """Build a section with its heading."""
    more = {"id": id_} if id_ else {}
    return tag("section", tag(f"h{level}", title), *children, **more)


def chapter(title: str, *children: Child, id_: str) -> Element:
    """Build a section that begins a page where it is printed."""
    return tag("section", tag("h2", title), *children, id=id_, class_="chapter")


def lacking(text: str) -> Element:
    """Say what is not there, and how it would get there."""
    return tag("p", text, class_=LACKING)


def details(summary: str, *children: Child) -> Element:
    """Fold something away; paper shows it folded."""
    return tag("details", tag("summary", summary), *children)


def document(title: str, *children: Element) -> bytes:
    """Write the page."""
    style = Element("style")
    style.text = files(__package__).joinpath("style.css").read_text("utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="generator", content=f"irv2 {__version__}"),
        tag("title", title),
        style,
    )
    page = tag("html", head, tag("body", tag("main", *children)), lang="en")
    text = f"<!doctype html>\n{tostring(page, encoding='unicode', method='html')}\n"
    return text.encode("utf-8", "backslashreplace")  # names of files need not be Unicode
