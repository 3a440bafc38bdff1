"""The options of an engine: how they are written down in the bundle and read again."""

from pathlib import Path

import pytest

from irv2.convert.engine.options import EngineOptions, read_profile
from irv2.errors import UsageError


@pytest.mark.parametrize(
    "options",
    [
        EngineOptions(profiles=((1, 8, 64),)),
        EngineOptions(profiles=((1, 4, 12), (13, 24, 64)), workspace_mb=256),
        EngineOptions(profiles=((1, 8, 64), (16, 24, 32)), version_compatible=True),
        EngineOptions(profiles=((1, 8, 64),), hardware_compatibility="same-compute-capability"),
    ],
)
def test_an_engine_is_built_again_as_it_was(options):
    assert EngineOptions.from_record(options.to_record(64)) == options


def test_the_profile_that_nobody_named_is_recorded_and_a_file_of_this_machine_is_not():
    record = EngineOptions(timing_cache=Path("cache")).to_record(32)
    assert record == {"profiles": "1:8:32", "workspace_mb": "4096"}


def test_a_record_of_before_there_were_any_gives_the_defaults():
    assert EngineOptions.from_record({"irv2": "0.1.0", "tensorrt": "11.4.0"}) == EngineOptions()


@pytest.mark.parametrize("text", ["8", "1:8", "1:8:64:128", "1:x:64", "1:-8:64"])
def test_what_is_no_profile_is_one_line(text):
    with pytest.raises(UsageError, match=f"--profile: {text}; expected three batch sizes, like 1"):
        read_profile(text)
