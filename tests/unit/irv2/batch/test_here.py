"""Answers from a bundle: those of `Bundle.classify`, with bad pictures anywhere between."""

import pytest
from batch_folder import jpeg
from tiny_bundle import write_tiny_bundle

from irv2.batch import here as module
from irv2.batch.here import Here
from irv2.batch.source import Picture, Source
from irv2.bundle import Bundle


@pytest.mark.parametrize("num_streams", [1, 2])
@pytest.mark.parametrize("bad", [(), (0, 5, 6), (18, 19), range(16, 20), range(20)], ids=str)
def test_rows_are_in_order_and_a_bad_picture_fails_alone(bad, num_streams, tmp_path, monkeypatch):
    bundle = write_tiny_bundle(tmp_path / "b.bundle", max_batch=4)
    for number in range(20):
        content = b"no picture" if number in bad else jpeg(number)
        (tmp_path / f"{number}.jpg").write_bytes(content)
    expected = Bundle.open(bundle).classify([tmp_path / f"{n}.jpg" for n in range(20)], 3)
    with Here(bundle, Source(tmp_path), 3, None) as here:
        monkeypatch.setattr(here._runner, "num_streams", num_streams)
        rows = list(here.answers(Picture(f"{number}.jpg") for number in range(20)))
    assert [row.name for row in rows] == [f"{number}.jpg" for number in range(20)]
    for row, result in zip(rows, expected, strict=True):
        assert (row.result.error is None) == (result.error is None)
        assert [s.index for s in row.result.scores] == [s.index for s in result.scores]
    assert [number for number, row in enumerate(rows) if row.result.error] == list(bad)


def test_a_picture_that_is_not_there_has_no_hash(tmp_path):
    with Here(write_tiny_bundle(tmp_path / "b.bundle"), Source(tmp_path), 5, None) as here:
        [row] = here.answers([Picture("gone.jpg")])
    assert (row.sha256, str(row.result.error)) == (
        "", "gone.jpg: No such file or directory; expected an image file"
    )  # fmt: skip


def test_bad_pictures_are_not_held_back_until_a_batch_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_IN_GROUP", 4)
    names = (Picture(f"{number}.jpg") for number in range(10**9))  # none of them is there
    with Here(write_tiny_bundle(tmp_path / "b.bundle"), Source(tmp_path), 5, None) as here:
        answers = here.answers(names)
        assert [next(answers).name for _ in range(6)] == [f"{number}.jpg" for number in range(6)]
        answers.close()


def test_an_error_holds_no_traceback_as_thousands_of_rows_wait(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    with Here(write_tiny_bundle(tmp_path / "b.bundle"), Source(tmp_path), 5, None) as here:
        for row in here.answers([Picture("bad.jpg"), Picture("gone.jpg")]):
            assert row.result.error.__traceback__ is None
            assert row.result.error.__cause__ is None
