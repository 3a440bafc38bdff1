"""Token files that make no sense, and files that change under a running server."""

import asyncio
import os
from contextlib import asynccontextmanager

import pytest

from irv2.client import Client
from irv2.errors import UsageError
from irv2.serve.access.tokens import TokenFile, read_tokens

TOKEN = "correct horse battery staple".replace(" ", "-")
OTHER = "another-token-of-some-length"
LOOK_EVERY_S = 0.02


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
    with pytest.raises(UsageError, match="tokens:2: a token that no header can carry"):
        read_tokens(path)
    with pytest.raises(UsageError, match="one word of printable ASCII") as refused:
        Client("localhost:1", token=token)
    assert TOKEN not in str(refused.value)


@pytest.mark.parametrize("line", [f"{TOKEN} {OTHER} {OTHER}", f"{TOKEN} short", f"{TOKEN} {OTHER}"])
def test_nothing_of_a_line_that_makes_no_sense_is_told(line, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"{TOKEN} {OTHER}\n{line}\n")
    with pytest.raises(UsageError, match="tokens:2: ") as refused:
        read_tokens(path)
    assert not any(secret in str(refused.value) for secret in (TOKEN, OTHER, "short;"))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\n", encoding="utf-8-sig")
    assert read_tokens(path) == {"alice": TOKEN}


@asynccontextmanager
async def watched(path):
    """The file's tokens, and a function that waits until they are these."""
    file = TokenFile(path, LOOK_EVERY_S)
    watching = asyncio.create_task(file.watch())

    async def become(expected):
        async with asyncio.timeout(5):
            while file.current() != expected:
                await asyncio.sleep(LOOK_EVERY_S / 4)

    yield file, become
    watching.cancel()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"alice {TOKEN}\nbob {OTHER}\n")
    return path


def test_a_whole_file_counts_at_once(path):
    file = TokenFile(path)
    path.write_text(f"bob {OTHER}\n")
    assert file.current() == {"bob": OTHER}


@pytest.mark.parametrize("text", ["", f"alice {TOKEN}\nbob anoth", "bob"])
def test_a_file_that_may_be_half_written_withdraws_nothing_yet(text, path):
    file = TokenFile(path)
    path.write_text(text)
    assert file.current() == {"alice": TOKEN, "bob": OTHER}
    path.write_text(f"{text}\ncarol {TOKEN}\n")
    assert file.current().keys() == ({"carol"} if not text else {"alice", "bob"})


@pytest.mark.parametrize(
    ("text", "expected", "logged"),
    [
        ("", {}, "tokens=0"),
        ("# nobody\n", {}, "tokens=0"),
        (f"alice {TOKEN}\nbob short\n", {"alice": TOKEN}, "tokens:2: no token, or a short one"),
        (f"bob {OTHER}\nalice {TOKEN}\u00e4\n", {"bob": OTHER}, "tokens:2: a token that no header"),
        (f"bob {OTHER}\nbob {TOKEN}\n", {"bob": OTHER}, "tokens:2: a name for the second time"),
    ],
)
def test_what_stays_as_it_is_was_meant(text, expected, logged, path, caplog):
    async def scenario():
        async with watched(path) as (_, become):
            path.write_text(text)
            await become(expected)

    caplog.set_level("INFO")
    asyncio.run(scenario())
    assert logged in caplog.text
    assert not any(secret in caplog.text for secret in (TOKEN, OTHER, "short\n"))


def test_a_deleted_file_withdraws_all_tokens_until_there_is_another(path, caplog):
    async def scenario():
        async with watched(path) as (_, become):
            path.unlink()
            await become({})
            path.write_text(f"bob {OTHER}\n")
            await become({"bob": OTHER})

    asyncio.run(scenario())
    assert f"{path}: can't be read (No such file or directory)" in caplog.text


def test_a_file_that_is_still_being_written_withdraws_nothing(path):
    async def scenario():
        async with watched(path) as (file, _):
            for i in range(20):  # for longer than two looks take
                path.write_text("bob" + "x" * i)
                await asyncio.sleep(LOOK_EVERY_S / 2)
                assert file.current() == {"alice": TOKEN, "bob": OTHER}

    asyncio.run(scenario())


def test_an_editor_s_file_and_a_secret_of_kubernetes_take_the_place_of_the_old_one(tmp_path):
    """A rename over the file; a link to a folder that is turned to another."""
    for number, token in enumerate((TOKEN, OTHER)):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "tokens").write_text(f"alice {token}\n")
    (tmp_path / "..data").symlink_to("..0")
    (tmp_path / "tokens").symlink_to("..data/tokens")
    file = TokenFile(tmp_path / "tokens")
    (tmp_path / "..new").symlink_to("..1")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert file.current() == {"alice": OTHER}
    (tmp_path / "tokens~").write_text(f"bob {TOKEN}\n")
    os.utime(tmp_path / "tokens~", (0, 0))
    (tmp_path / "tokens~").replace(tmp_path / "tokens")
    assert file.current() == {"bob": TOKEN}
