"""Names that come from elsewhere, and rounded numbers, in what we print or write."""

import unicodedata
from collections.abc import Sequence


def one_line(name: object) -> str:
    """Return `name` with its control characters and line breaks spelled out, as `\\n`.

    A file or class may be called anything, and a line break would end a table's row.
    """
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in ("Cc", "Zl", "Zp")
        else char
        for char in str(name)
    )


def markdown_cell(name: object) -> str:
    """Return `name` as it can stand in a cell of a table in Markdown."""
    return one_line(name).replace("|", "\\|")


def quoted(name: str, *, always: bool = False) -> str:
    """Return `name` for a message: in quotes if it would not be seen whole without, or always."""
    return f'"{one_line(name)}"' if always or name != name.strip() or not name else one_line(name)


def first_few(names: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """Return the first names of a list, and an ellipsis for the others."""
    return separator.join([*names[:most], "..."] if len(names) > most else names)


def shortened(entries: Sequence[str], most: int = 6) -> str:
    """Return the first entries of a list, and how many more there are."""
    more = len(entries) - most
    return ", ".join(entries[:most]) + (f" and {more} more" if more > 0 else "")


def two_digits(num: int) -> int:
    """Return `num` rounded up to two significant digits, so that the number still suffices."""
    unit: int = 10 ** max(0, len(str(num)) - 2)
    return -(-num // unit) * unit
