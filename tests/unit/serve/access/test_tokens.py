"""Token files that make no sense."""

import pytest

from irv2.client import Client
from irv2.errors import UsageError
from irv2.serve.access.tokens import read_tokens

TOKEN = "correct horse battery staple".replace(" ", "-")
OTHER = "another-token-of-some-length"


@pytest.mark.parametrize(
    "text", ["", "# nobody\n", "alice\n", "alice short\n", f"a {TOKEN}\na {OTHER}\n"]
)
def test_a_token_file_that_makes_no_sense_is_wrong_usage(text, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_tokens(path)
    with pytest.raises(UsageError):
        read_tokens(tmp_path / "none")


@pytest.mark.parametrize("token", [f"{TOKEN}\u00e4", f"{TOKEN} {TOKEN}", f"{TOKEN}\x7f"])
def test_a_token_that_no_header_can_carry_is_refused_on_either_side(token, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\nbob {token}\n")
    with pytest.raises(UsageError, match="tokens:2: a token of 'bob' that no header can carry"):
        read_tokens(path)
    with pytest.raises(UsageError, match="one word of printable ASCII") as refused:
        Client("localhost:1", token=token)
    assert TOKEN not in str(refused.value)
