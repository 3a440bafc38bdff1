"""Names stay on their line."""

import pytest

from irv2.system.text import first_few, markdown_cell, one_line, quoted, shortened, two_digits


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tench", "tench"),
        ("a b", "a b"),
        ("two\nlines", r"two\nlines"),
        ("back\r\x1b[2Jto the start\t", r"back\r\x1b[2Jto the start\t"),
        ("a\x85b\u2028c", r"a\x85b\u2028c"),
        ("Äpfel 猫", "Äpfel 猫"),
        ("caf\udce9", "caf\udce9"),  # not UTF-8: printed as it is, like `ls`
    ],
)
def test_what_would_end_or_move_the_line_is_spelled_out(name, shown):
    assert one_line(name) == shown
    assert len(one_line(name).splitlines()) == 1


def test_a_bar_does_not_end_a_cell():
    assert markdown_cell("a|b\nc") == r"a\|b\nc"


@pytest.mark.parametrize(
    ("name", "shown"), [("a b", "a b"), (" a", '" a"'), ("a\n", r'"a\n"'), ("", '""'), ("猫", "猫")]
)
def test_spaces_around_a_name_are_shown_by_quotes(name, shown):
    assert quoted(name) == shown
    assert quoted("a", always=True) == '"a"'


def test_a_list_is_cut_only_where_something_is_left_out():
    assert first_few(["a", "b", "c"], 3) == "a, b, c"
    assert first_few(["a", "b", "c"], 2, separator="; ") == "a; b; ..."
    assert shortened(["a", "b", "c"], 3) == "a, b, c"
    assert shortened(["a", "b", "c"], 1) == "a and 2 more"
    assert first_few([]) == shortened([]) == ""


@pytest.mark.parametrize(("num", "rounded"), [(7, 7), (99, 99), (561, 570), (2995, 3000)])
def test_a_rounded_number_still_suffices(num, rounded):
    assert two_digits(num) == rounded
