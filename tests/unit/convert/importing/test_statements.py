"""Who decides about the preprocessing: an option, a file, or the published network."""

from pathlib import Path

import pytest
from imported import refused

from irv2.convert.importing.statements import PUBLISHED, Statement, described_sources, settle
from irv2.convert.importing.weights import SLIM_PREPROCESS

PATH = Path("a.pth")


def settled(*statements: Statement, **options: object):
    return settle(SLIM_PREPROCESS, statements, options, PATH)


def test_what_nobody_says_is_the_published_networks():
    preprocess, sources = settled()
    assert preprocess == SLIM_PREPROCESS
    assert set(sources.values()) == {PUBLISHED}


def test_options_have_the_last_word_and_each_source_is_named():
    said = Statement("config.json", {"crop": 224, "crop_pct": 0.875, "mean": (0.4, 0.4, 0.4)})
    preprocess, sources = settled(said, mean=(0.1, 0.2, 0.3))
    assert (preprocess.resize, preprocess.crop) == (256, 224)
    assert preprocess.mean == (0.1, 0.2, 0.3)
    assert described_sources(sources) == (
        f"resize, crop: config.json; resampling, std: {PUBLISHED}; mean: --mean"
    )


def test_a_crop_alone_keeps_the_published_proportion():
    assert settled(Statement("args", {"crop": 224}))[0].resize == 249
    assert settled(crop=299)[0].resize == 333


def test_two_files_that_contradict_each_other_are_refused_unless_an_option_decides():
    two = Statement("args", {"crop_pct": 0.9}), Statement("config.json", {"crop_pct": 1.0})
    line = refused(lambda: settled(*two))
    assert line == (
        "a.pth: crop_pct is 0.9 in args, 1.0 in config.json; expected one value; --resize decides"
    )
    assert settled(*two, resize=310)[0].resize == 310


@pytest.mark.parametrize(
    ("values", "expected", "options"),
    [
        ({"resampling": "bilinear"}, "resampling is bilinear in args; expected torch7-bicubic or",
         {"resampling": "pillow-bicubic"}),
        ({"crop_mode": "squash"}, "crop_mode is squash in args; expected center; --resize",
         {"resize": 333}),
        ({"mean": "the code of lambda"}, "mean is the code of lambda in args; expected numbers; "
         "--mean says it", {"mean": (0, 0, 0)}),
    ],
)  # fmt: skip
def test_what_this_preprocessing_can_not_do_is_refused_unless_an_option_decides(
    values, expected, options
):
    said = Statement("args", values)
    assert expected in refused(lambda: settled(said))
    assert settled(said, **options)


def test_a_crop_that_is_too_small_for_the_network_is_refused():
    line = refused(lambda: settled(Statement("args", {"crop": 64})))
    assert line == "a.pth: crop is 64 in args; expected 75 pixels or more"
