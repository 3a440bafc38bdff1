"""What the report says of classes."""

import numpy as np

from irv2.ledger import Ledger, Predictions
from irv2.report.classes import classes_section


def section(num_classes):
    labels = np.arange(num_classes)
    logits = np.eye(num_classes, dtype=np.float32)
    logits[0] = logits[1]  # class 0 is taken for 1
    answers = Predictions(("f",) * num_classes, ("0",) * num_classes, labels, logits)
    names = [f"name {i}" for i in labels]
    return classes_section(Ledger.from_predictions(answers), names)


def test_a_small_matrix_has_a_row_and_a_column_for_each_class():
    found = section(4)
    [matrix] = [div for div in found.iter("div") if "matrix" in div.get("class", "")]
    rows = [[cell.text for cell in row.iter("span")] for row in matrix.find("table/tbody")]
    assert rows[0] == ["·", "1", "·", "·"]
    assert rows[2] == ["·", "·", "1", "·"]
    assert matrix.find("table/tbody/tr/td/span").get("style") == "--share:0.0%"
    text = "".join(found.itertext())
    assert "top-1 error 25.00 (0.63-80.59) %" in text  # exact, of 1 in 4
    assert "100.0 (2.5-100.0)" in text


def test_of_many_classes_the_lowest_come_first_and_all_are_folded_away():
    found = section(100)
    assert "matrix of 100 classes has no room" in "".join(found.itertext())
    first, folded = [t for t in found.iter("table") if "F1, %" in "".join(t.itertext())]
    assert len(first.findall("tbody/tr")) == 30
    assert first.find("tbody/tr/th").text == "name 0"
    assert len(folded.findall("tbody/tr")) == 100
    assert [len(each.findall(".//tbody/tr")) for each in found.iter("details")] == [100]
