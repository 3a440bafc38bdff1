"""Class names as a file gives them."""

from pathlib import Path

import pytest

from irv2.convert.importing.run import classes_of, drops_background
from irv2.convert.importing.weights import SLIM_PREPROCESS, PublishedWeights
from irv2.errors import InputError
from irv2.network_config import SlimConfig


def test_class_names_are_read_without_an_editors_byte_order_mark(tmp_path):
    (tmp_path / "names").write_text("cat\ndog\n", "utf-8-sig")
    assert classes_of(2, tmp_path / "names", Path("weights")) == ["cat", "dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_class_names_with_a_nul_byte_are_refused(tmp_path, encoding):
    (tmp_path / "names").write_text("c\0t\ndog\n", encoding)
    with pytest.raises(InputError, match="names: a name with a NUL byte; expected text"):
        classes_of(2, tmp_path / "names", Path("weights"))


@pytest.mark.parametrize(
    ("names", "expected"), [(None, True), (["background"], True), (["ant"], False)]
)
def test_the_first_of_1001_classes_is_the_background_unless_it_is_named_otherwise(names, expected):
    weights = PublishedWeights(
        kind="timm weights",
        config=SlimConfig(num_classes=1001),
        preprocess=SLIM_PREPROCESS,
        tensors={},
        names={},
        classes=(*names, *map(str, range(1000))) if names else None,
    )
    assert drops_background(weights, False, Path("weights")) is expected
