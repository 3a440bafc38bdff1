"""The pictures of a report: which, in what order, and what is said of those that are missing."""

import base64
import io

import pytest
from PIL import Image

from irv2.errors import ImageError
from irv2.report.pictures import Pictures, flips_section, surest_wrong, worst_section
from irv2.report.sources import read_sources


@pytest.fixture
def published(bundle):
    return read_sources([bundle]).bundles[0]


def text(element):
    return "\n".join(element.itertext())


def test_wrong_answers_come_by_the_distance_of_the_label(published):
    found = surest_wrong(published.reference)
    assert found == [(5, 8.0, True), (1, 2.0, True)]


def test_a_label_that_is_not_among_the_best_five_is_at_least_as_far_as_the_fifth(published):
    reference = published.reference
    reference.top5[5, 1] = 1  # in place of the label
    assert surest_wrong(reference)[0] == (5, 9.0, False)


def test_pictures_carry_answers_and_file(published, data):
    found = worst_section(published, published.reference, Pictures(data, 1))
    [figure] = found.iter("figure")
    assert text(figure.find("figcaption")).split("\n") == [
        "label c&amp;",
        "answer <script>alert(1)",
        "label behind by 8.00",
        "c&amp;/<b>1.png",
    ]
    kind, encoded = figure.find("img").get("src").split(",")
    assert kind == "data:image/jpeg;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    assert picture.size == (160, 107)
    assert picture.getpixel((80, 50)) == (200, 200, 200)
    assert "The first 1 of 2:" in text(found)


def test_without_data_they_are_said_to_be_left_out(published):
    found = worst_section(published, published.reference, Pictures(None, 12))
    assert "left out, as the report was made without --data" in text(found)
    assert not list(found.iter("img"))


def test_pictures_that_are_not_in_the_data_are_counted(published, data):
    (data / "val" / "c&amp;" / "<b>1.png").unlink()
    found = worst_section(published, published.reference, Pictures(data, 12))
    assert "1 of 2 are not among those in val" in text(found)
    assert len(list(found.iter("figure"))) == 1


def test_flips_are_counted_per_backend_and_shown_once(published, data):
    found = flips_section(published, published.reference, Pictures(data, 12))
    rows = [[cell.text for cell in row] for row in found.find("div/table/tbody")]
    assert rows == [
        ["model.onnx", "openvino-cpu 1.0 amx", "2", "1", "1", "0"],
        ["model.onnx", "onnxruntime-cpu 1.0 amx", "2", "1", "1", "0"],
    ]
    assert "The same as model.onnx on openvino-cpu 1.0 amx." in text(found)
    changes = [figure.find("figcaption/span/span").text for figure in found.iter("figure")]
    assert changes == ["gained", "lost"]  # the surest answers of the checkpoint first


def test_a_picture_that_does_not_decode_is_named(published, data):
    path = data / "val" / "c&amp;" / "<b>1.png"
    pictures = Pictures(data, 12)
    assert list(worst_section(published, published.reference, pictures).iter("img"))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"<b>1\.png"):
        worst_section(published, published.reference, pictures)
