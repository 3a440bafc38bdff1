"""Arrays in a file: back as they were, or one kind of error whatever is damaged."""

import numpy as np
import pytest

from irv2.system.arrays import bytes_from_arrays, load_arrays


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "arrays.npz"
    path.write_bytes(bytes_from_arrays(a=np.arange(1000), b=["x", "y"]))
    return path


def test_arrays_come_back_in_the_order_asked_for(path):
    b, a = load_arrays(path, "b", "a")
    assert b.tolist() == ["x", "y"]
    assert a.tolist() == list(range(1000))


def test_every_damaged_byte_gives_the_arrays_or_a_value_error(path):
    whole = path.read_bytes()
    num_refused = 0
    for at in range(len(whole)):
        for value in (0x00, 0xFF, whole[at] ^ 0x10):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                load_arrays(path, "a", "b")
            except ValueError:
                num_refused += 1
    assert num_refused > len(whole)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_what_is_no_archive_or_lacks_an_array_is_a_value_error(path, content):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        load_arrays(path, "a", "c")
