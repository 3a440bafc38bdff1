"""`irv2 sign`, and what `irv2 inspect` and `irv2 verify` say of a signature."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from signing import certified, key_pair
from tiny_bundle import write_tiny_bundle

from irv2.cli.main import main
from irv2.manifest import SIGNATURE


@pytest.fixture
def bundle(tmp_path) -> Path:
    return write_tiny_bundle(tmp_path / "tiny.bundle")


def irv2(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def error_line(done: Result) -> str:
    assert done.exit_code == 2, done.output
    [line] = done.stderr.splitlines()
    return line


def test_inspect_says_who_signed_and_whether_that_is_proven(bundle, tmp_path):
    ours, theirs = certified(tmp_path), certified(tmp_path, "mallory")
    assert "signature   none" in irv2("inspect", bundle).output
    done = irv2("sign", bundle, *ours.options, "--json")
    assert json.loads(done.stdout)["signer"].startswith("CN=signer")
    shown = irv2("inspect", bundle)
    assert "its files match; who it was needs --require-signature" in shown.output
    shown = irv2("inspect", bundle, "--require-signature", ours.root, "--json")
    stated = json.loads(shown.stdout)["signature"]
    assert (stated["proven"], stated["problem"]) == (True, "")

    shown = irv2("inspect", bundle, "--require-signature", theirs.root)
    assert "DOES NOT HOLD" in shown.stdout
    assert "is not trusted" in error_line(shown)
    (bundle / "added.txt").write_text("")
    assert "added.txt: is not in model.sig" in error_line(irv2("inspect", bundle))


def test_a_signed_bundle_is_judged_again_only_by_who_says_what_becomes_of_the_signature(
    bundle, tmp_path
):
    pair = key_pair(tmp_path)
    irv2("sign", bundle, "--key", pair.private)
    before = (bundle / SIGNATURE).read_bytes()
    line = error_line(irv2("verify", bundle, "--data", tmp_path))
    assert "is signed by key " in line
    assert "--key to sign it again, or --drop-signature" in line
    assert (bundle / SIGNATURE).read_bytes() == before


def test_options_that_do_not_sign_are_one_line(bundle, tmp_path):
    pair = key_pair(tmp_path)
    assert "--key: not given" in error_line(irv2("sign", bundle))
    line = error_line(irv2("verify", bundle, "--certificate", pair.public))
    assert "--certificate and --chain: without --key" in line
