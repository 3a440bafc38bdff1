"""The result on disk: parts, what they lack, and the file at the end."""

import itertools
import os

import pyarrow.parquet as pq
import pytest

from irv2.batch import parts as module
from irv2.batch.parts import Parts, Row, Work, count_reasons
from irv2.errors import ImageError, ImageReason, InputError, Irv2Error, UsageError
from irv2.results import Result, Score

WORK = Work(source="/photos", names_sha256="5", num_names=10, model_id="model", top_k=1)


def row(number: int) -> Row:
    if number == 3:
        error = ImageError(ImageReason.TRUNCATED, "half", "whole", what="3.jpg")
        return Row("3.jpg", "hash", Result(error=error))
    return Row(f"{number}.jpg", "hash", Result((Score(0, "cat", number / 10),), orientation=6))


def rows(numbers: range):
    return map(row, numbers)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART_ROWS", 4)
    with Parts(tmp_path / "out.parquet").locked() as parts:
        yield parts


def write(parts: Parts, numbers: range) -> None:
    parts.write(rows(numbers), numbers.start, WORK, lambda num: None)


def files(parts: Parts) -> list[str]:
    return sorted(path.name for path in parts.folder.glob("part-*"))


def test_parts_hold_the_rows_in_order_and_the_file_all_of_them(parts):
    write(parts, range(10))
    assert files(parts) == [f"part-{start:012}.parquet" for start in (0, 4, 8)]
    assert parts.missing(WORK) == []
    parts.join(WORK)
    found = pq.read_table(parts.out).to_pylist()
    assert [each["file"] for each in found] == [f"{number}.jpg" for number in range(10)]
    assert found[2] == {
        "file": "2.jpg", "sha256": "hash", "classes": ["cat"],
        "probabilities": [pytest.approx(0.2)], "error": None, "reason": None, "orientation": 6,
        "model_id": "model",
    }  # fmt: skip
    assert (found[3]["classes"], found[3]["reason"]) == (None, "TRUNCATED")
    assert found[3]["error"] == "half; expected whole"
    assert count_reasons(parts.out) == {"TRUNCATED": 1}
    assert (files(parts), parts.begun()) == ([], WORK)


def test_rows_before_an_error_are_kept_and_the_rest_is_missing(parts):
    def failing():
        yield from rows(range(6))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write(failing(), 0, WORK, lambda num: None)
    assert parts.missing(WORK) == [range(6, 10)]
    assert parts.begun() == WORK


def test_a_part_is_written_when_it_is_due_by_time(parts, monkeypatch):
    clock = itertools.count(step=module.PART_S / 2)
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    write(parts, range(5))
    assert len(files(parts)) == 3  # of two rows each, a minute later


def test_whatever_parts_are_lost_is_missing_and_can_be_written_again(parts):
    for lost in itertools.product([False, True], repeat=3):
        for part in parts.folder.glob("part-*"):
            part.unlink()
        write(parts, range(10))
        for name, is_lost in zip(files(parts), lost, strict=True):
            if is_lost:
                (parts.folder / name).unlink()
        for stretch in parts.missing(WORK):
            write(parts, stretch)
        assert parts.missing(WORK) == []
        table = pq.read_table([parts.folder / name for name in files(parts)])
        assert table["file"].to_pylist() == [f"{number}.jpg" for number in range(10)]


def test_rows_that_are_twice_or_missing_are_named_and_never_joined(parts):
    """As after two computers wrote on a disk without locks, or an answerer that ended early."""
    write(parts, range(3))
    write(parts, range(2, 8))
    overlap = parts.folder / "part-000000000002.parquet"
    with pytest.raises(InputError, match=rf"^{overlap}: begins at row 2, .* ends at 3; .*remove"):
        parts.join(WORK)
    overlap.unlink()
    with pytest.raises(Irv2Error, match=r"out\.parquet: 5 rows are missing, the first is 3; .*10"):
        parts.join(WORK)
    assert not parts.out.exists()
    for stretch in parts.missing(WORK):
        write(parts, stretch)
    parts.join(WORK)
    found = pq.read_table(parts.out)["file"].to_pylist()
    assert found == [f"{number}.jpg" for number in range(10)]


def test_small_parts_become_large_row_groups(parts, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP_ROWS", 8)
    write(parts, range(10))
    parts.join(WORK)
    metadata = pq.read_metadata(parts.out)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8, 2]


def test_a_damaged_part_is_named_with_the_way_out(parts):
    write(parts, range(10))
    damaged = parts.folder / files(parts)[1]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"^{damaged}: .*remove it to have its pictures"):
        parts.missing(WORK)


def test_a_file_of_something_else_is_refused(parts):
    import pyarrow as pa

    pq.write_table(pa.table({"x": [1]}), parts.out)
    with pytest.raises(InputError, match=r"out\.parquet: exists; expected a new file, or one of"):
        parts.begun()


def test_a_pipe_is_refused_and_not_waited_for(parts):
    os.mkfifo(parts.out)
    with pytest.raises(UsageError, match="is no file"):
        parts.begun()


def test_two_processes_do_not_write_one_result(parts, monkeypatch):
    monkeypatch.setattr(module, "try_lock", lambda file: False)  # a process may lock twice
    with (
        pytest.raises(UsageError, match="another irv2 batch is writing it"),
        Parts(parts.out).locked(),
    ):
        pass


def test_a_lock_that_another_process_removes_at_its_end_is_none(tmp_path, monkeypatch):
    parts = Parts(tmp_path / "out.parquet")

    def after_another_has_ended(file) -> bool:
        (parts.folder / "_lock").unlink()
        return True

    monkeypatch.setattr(module, "try_lock", after_another_has_ended)
    with pytest.raises(UsageError, match="another irv2 batch is writing it"), parts.locked():
        pass


def test_the_folder_goes_with_its_last_part_but_not_files_of_others(tmp_path):
    parts = Parts(tmp_path / "out.parquet")
    with parts.locked():
        write(parts, range(10))
        parts.join(WORK)
    assert not parts.folder.exists()
    parts.folder.mkdir()
    (parts.folder / "mine").touch()
    with parts.locked():
        pass
    assert [path.name for path in parts.folder.iterdir()] == ["mine"]


def test_what_a_kill_left_is_removed_and_the_half_of_another_result_stays(tmp_path):
    own, others = tmp_path / ".x.0a1b2c3d.tmp", tmp_path / ".x.b.0a1b2c3d.tmp"
    own.touch(), others.touch()
    with Parts(tmp_path / "x").locked():
        assert (own.exists(), others.exists()) == (False, True)


def test_joining_shows_how_far_it_is(parts, monkeypatch, caplog):
    write(parts, range(10))
    monkeypatch.setattr("irv2.system.progress.LINE_EVERY_S", 0)
    with caplog.at_level("INFO"):
        parts.join(WORK)
    lines = [line.partition(" rows,")[0] for line in caplog.messages]
    assert lines == ["join: 4/10", "join: 8/10", "join: 10/10"]
