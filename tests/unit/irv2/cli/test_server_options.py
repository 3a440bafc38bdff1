"""The options that say how to speak to a server, and the files that they name."""

import pytest

from irv2.cli.server_options import read_token
from irv2.errors import UsageError


def test_a_token_file_holds_one_token_alone(tmp_path):
    path = tmp_path / "token"
    path.write_text(" 0123456789/+=:abc\n\n")
    assert read_token(path) == "0123456789/+=:abc"


def test_a_byte_order_mark_is_no_part_of_the_token(tmp_path):
    path = tmp_path / "token"
    path.write_text("0123456789/+=:abc\n", encoding="utf-8-sig")
    assert read_token(path) == "0123456789/+=:abc"


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (b"", "0 words"),
        (b"\n", "0 words"),
        (b"alice 0123456789abcdef\n", "2 words"),
        ("schlüssel-von-alice\n".encode(), "not printable ASCII"),
        (bytes(range(256)), "not printable ASCII"),
    ],
    ids=["empty", "blank", "the server's", "not ASCII", "binary"],
)
def test_any_other_token_file_is_wrong_usage_that_shows_none_of_it(tmp_path, content, got):
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(UsageError) as refused:
        read_token(path)
    assert str(refused.value) == f"{path}: {got}; expected a file that holds one token alone"
