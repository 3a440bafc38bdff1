"""Which file of a repository is taken, and names that lead to none."""

import sys
from pathlib import Path

import pytest

from irv2.convert.importing.hub import choose, fetch
from irv2.errors import EngineError, InputError, UsageError


@pytest.mark.parametrize(
    ("wanted", "files", "expected"),
    [
        ("", ["a.pth", "pytorch_model.bin", "model.safetensors"], "model.safetensors"),
        ("", ["a.pth", "pytorch_model.bin", "README.md"], "pytorch_model.bin"),
        ("", ["README.md", "net.t7", "old/model.safetensors"], "net.t7"),
        ("old/a.pth", ["model.safetensors", "old/a.pth"], "old/a.pth"),
    ],
)
def test_the_weights_are_the_usual_file_or_the_only_one_or_the_one_named(wanted, files, expected):
    assert choose("hf:a/b", wanted, files) == expected


@pytest.mark.parametrize(
    ("wanted", "files", "line"),
    [
        ("", ["a.pth", "b.h5"], "has 2 files that may be the weights; expected one of a.pth, b.h5"),
        ("", ["README.md"], "has 0 files that may be the weights; expected a file of .safetensors"),
        ("c.pth", ["a.pth"], "has no file c.pth; expected one of a.pth; name it: hf:OWNER/NAME"),
    ],
)
def test_where_it_can_not_be_told_the_files_are_listed(wanted, files, line):
    with pytest.raises(InputError) as caught:
        choose("hf:a/b", wanted, files)
    assert f"hf:a/b: {line}" in str(caught.value)


@pytest.mark.parametrize("name", ["hf:", "hf:bert", "hf:a/b@", "hf:datasets/a/b", "hf:a b/c"])
def test_a_name_of_another_form_is_wrong_usage(name):
    with pytest.raises(UsageError, match=r"expected hf:OWNER/NAME\[@REVISION\]\[/FILE\]"):
        fetch(name, Path("a.pt"))


def test_without_the_library_the_line_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(EngineError, match=r'not installed; pip install "irv2\[hub\]"'):
        fetch("hf:a/b", Path("a.pt"))
