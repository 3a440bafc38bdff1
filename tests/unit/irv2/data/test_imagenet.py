"""ImageNet's class names, and finding their images by synset."""

import numpy as np
import pytest
from PIL import Image

from irv2.data.dataset import open_split
from irv2.data.imagenet import class_names, folder_names, names_by_synset
from irv2.errors import DataError


def test_there_are_1000_names_no_two_alike_even_where_capitals_do_not_count():
    assert len({name.lower() for name in class_names()}) == 1000
    assert all(name == name.strip() != "" for name in class_names())


def test_synsets_are_in_class_order():
    synsets = list(names_by_synset())
    assert synsets == sorted(synsets)
    assert all(len(synset) == 9 and synset[0] == "n" for synset in synsets)


@pytest.mark.parametrize(
    ("index", "name"),
    [(0, "tench"), (207, "golden retriever"), (281, "tabby"), (285, "Egyptian cat"),
     (409, "analog clock"), (817, "sports car"), (954, "banana"), (999, "toilet tissue")],
)  # fmt: skip
def test_well_known_indices_bear_their_names(index, name):
    assert class_names()[index] == name


def test_folders_bear_the_names_or_the_synsets():
    classes = class_names()
    assert folder_names(classes, {"tench", "goldfish"})[:3] == tuple(classes[:3])
    assert folder_names(classes, {"n01440764", "n01443537"})[1] == "n01443537"
    assert folder_names(["cat", "tench"], {"cat", "n01440764"}) == ("cat", "n01440764")
    assert folder_names(["cat", "dog"], {"mouse"}) == ("cat", "dog")


def test_images_in_synset_folders_get_the_labels_of_their_names(tmp_path):
    for synset in ("n02123045", "n01440764"):
        (tmp_path / "val" / synset).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / synset / "a.png")
    images = open_split(tmp_path, "val", class_names())
    np.testing.assert_array_equal(images.labels, [0, 281])
    assert images.files == ("n01440764/a.png", "n02123045/a.png")
    (tmp_path / "val" / "n99999999").mkdir()
    with pytest.raises(DataError, match="n99999999 is unknown"):
        open_split(tmp_path, "val", class_names())
