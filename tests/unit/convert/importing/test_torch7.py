"""Torch7's binary format: what the reader gives back, and that damaged files end in one line."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch7_writer import Object, Storage, Tensor, dumps, save, sequence

from irv2.convert.importing.torch7 import Torch7Object, load
from irv2.errors import CheckpointError

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.t7"


def round_trip(path: Path, value: object):
    return load(save(path, value))


def refused(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_plain_values_come_back(path):
    table = {"a": 1.5, "b": True, "c": False, "d": "text \xff", "e": None, 1.0: {}, False: "key"}
    assert round_trip(path, table) == table


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Float", "f4"),
        ("Cuda", "f4"),
        ("Double", "f8"),
        ("CudaDouble", "f8"),
        ("CudaHalf", "f2"),
        ("Long", "i8"),
        ("CudaLong", "i8"),
        ("Int", "i4"),
        ("Short", "i2"),
        ("Byte", "u1"),
        ("Char", "i1"),
    ],
)
def test_tensors_of_every_type_come_back(path, kind, dtype):
    found = round_trip(path, Tensor(MATRIX.astype(dtype), kind))
    assert found.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(found, MATRIX)


def test_tensors_that_share_a_storage_are_read_at_their_offsets(path):
    """As getParameters and a DataParallelTable leave all weights."""
    storage = Storage(np.arange(10, dtype=np.float32))
    parts = sequence(Tensor(MATRIX, storage=storage, offset=4), Tensor(MATRIX, storage=storage))
    found = round_trip(path, parts)
    np.testing.assert_array_equal(found[1.0], MATRIX + 4)
    np.testing.assert_array_equal(found[2.0], MATRIX)


def test_a_tensor_emptied_by_clear_state_is_empty(path):
    assert round_trip(path, Tensor(np.empty(0, np.float32))).size == 0


def test_objects_keep_class_fields_and_identity(path):
    shared = Object("nn.ReLU", {"inplace": True}, version=None)
    found = round_trip(path, Object("nn.Sequential", {"a": shared, "b": shared}, version=2))
    assert (found.type_name, found.fields["a"].type_name) == ("nn.Sequential", "nn.ReLU")
    assert found.fields["a"] is found.fields["b"]
    assert found.fields["a"].fields == {"inplace": True}


def test_an_object_may_contain_itself(path):
    cycle = Object("nn.Container")
    cycle.fields["self"] = cycle
    found = round_trip(path, cycle)
    assert found.fields["self"] is found


@pytest.mark.parametrize(("version", "before"), [(1, ()), (2, (sequence(1, 2),)), (3, ({},))])
def test_a_data_parallel_table_has_its_gpus_ahead_of_its_fields_since_version_2(
    path, version, before
):
    table = Object("nn.DataParallelTable", {"dimension": 1}, version, before)
    found = round_trip(path, sequence(table, "what follows"))
    assert found[1.0].fields == {"dimension": 1}
    assert found[2.0] == "what follows"


@pytest.mark.parametrize("index", [(6,), (7, 9), (8, 9)])  # type, and the index if it has one
def test_functions_are_skipped(path, index):
    function = struct.pack(f"<{len(index)}ii4s", *index, 4, b"code") + dumps({})
    table = struct.pack("<iii", 3, 7, 2) + dumps("f") + function + dumps("g") + dumps(1.5)
    path.write_bytes(table)
    assert load(path) == {"f": None, "g": 1.5}


def test_a_function_that_closes_over_itself_is_skipped(path):
    again = struct.pack("<ii", 8, 9)
    upvalues = struct.pack("<iii", 3, 10, 1) + dumps(1.0) + again
    path.write_bytes(struct.pack("<iii4s", 8, 9, 4, b"code") + upvalues)
    assert load(path) is None


def test_every_truncated_file_is_refused_in_one_line(path):
    whole = dumps(Object("nn.Linear", {"weight": Tensor(MATRIX), "name": "text"}))
    for length in range(1, len(whole)):
        assert "damaged Torch7 file" in refused(path, whole[:length])


def tensor_header(shape: list[int], strides: list[int], offset: int) -> bytes:
    """A FloatTensor of these sizes over a storage of six numbers."""
    numbers = [*shape, *strides, offset]
    return (
        struct.pack("<iii3si17s", 4, 1, 3, b"V 1", 17, b"torch.FloatTensor")
        + struct.pack(f"<i{len(numbers)}q", len(shape), *numbers)
        + struct.pack("<iii3si18sq", 4, 2, 3, b"V 1", 18, b"torch.FloatStorage", 6)
        + MATRIX.tobytes()
    )


@pytest.mark.parametrize(
    ("shape", "strides", "offset"),
    [([2, 4], [4, 1], 1), ([2, 3], [3, 1], 2), ([2, 3], [-3, 1], 4), ([6], [1], 0), ([6], [1], -5),
     ([-2, 3], [3, 1], 1), ([2**40, 2**40], [0, 0], 1), ([7], [0], 1), ([2], [2**62], 1)],
)  # fmt: skip
def test_a_tensor_that_reaches_outside_its_storage_is_refused(path, shape, strides, offset):
    assert "can't hold" in refused(path, tensor_header(shape, strides, offset))


def test_the_same_header_with_sizes_that_fit_is_read(path):
    path.write_bytes(tensor_header([2, 3], [3, 1], 1))
    np.testing.assert_array_equal(load(path), MATRIX)
    path.write_bytes(tensor_header([3, 2], [1, 3], 1))  # transposed
    np.testing.assert_array_equal(load(path), MATRIX.T)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (struct.pack("<iii", 3, 1, -1), "a table of -1 entries"),
        (struct.pack("<iiii", 3, 1, 2**31 - 1, 0), "a NoneType as a table's key"),
        (struct.pack("<iiiiii", 3, 1, 1, 3, 2, 0), "a dict as a table's key"),
        (struct.pack("<ii", 2, -5), "-5 bytes wanted"),
        (struct.pack("<ii", 2, 2**31 - 1), "bytes wanted"),
        (struct.pack("<i", 77), "type 77"),
        (struct.pack("<iii3si16s", 4, 1, 3, b"V 1", 16, b"torch.QuadTensor"), "unknown type"),
        (struct.pack("<iii3si5s", 4, 1, 3, b"V 1", 5, b"nn.Xy") + dumps(1), "without fields"),
    ],
)
def test_nonsense_is_named(path, content, expected):
    assert expected in refused(path, content)


def test_a_version_that_is_no_number_counts_as_an_old_one(path):
    content = dumps(Object("nn.Linear", {"weight": Tensor(MATRIX)}))
    path.write_bytes(content.replace(b"V 1", b"V \xb2", 1))  # a digit, and yet no decimal one
    np.testing.assert_array_equal(load(path).fields["weight"], MATRIX)


def test_values_nested_without_end_are_refused(path):
    value: object = 1
    for _ in range(60):
        value = Object("nn.Sequential", {"inner": value})
    assert "nested over 100 deep" in refused(path, dumps(value))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_flipped_bytes_give_a_value_or_one_line(path, data):
    whole = bytearray(dumps(sequence(Object("nn.Linear", {"weight": Tensor(MATRIX)}), "text")))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        assert isinstance(load(path), dict | Torch7Object | str | float | bool | None | np.ndarray)
    except CheckpointError as error:
        assert "damaged Torch7 file" in str(error)  # noqa: PT017 (either is right)


def test_arrays_are_views_of_the_file_and_can_not_be_written(path):
    assert not round_trip(path, Tensor(MATRIX)).flags.writeable
