"""Errors and results travel between processes, whole."""

import importlib
import inspect
import multiprocessing
import pickle
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
from project import ROOT

from irv2 import results
from irv2.errors import Expired, ImageError, ImageReason, Irv2Error, Overloaded
from irv2.results import Result, Score

VALUES = {object: Path("a.jpg"), str: "text", float: 1.5, ImageReason: ImageReason.TRUNCATED}
RESULTS = [
    Result(scores=(Score(3, "cat", 0.5), Score(1, "dog", 0.25)), model_id="id"),
    Result(error=ImageError(ImageReason.TRUNCATED, "half", "whole", "again", Path("a.jpg"))),
]


def errors_of_the_package() -> list[type[Irv2Error]]:
    for folder in ("irv2", "train", "convert", "serve"):
        for path in (ROOT / folder).rglob("*.py"):
            if re.search(r"^class \w+\(\w*Error\):", path.read_text(), re.MULTILINE):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                importlib.import_module(f"irv2.{name.removeprefix('irv2.')}")
    kinds = [Irv2Error]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return kinds


def made(kind: type[Irv2Error]) -> Irv2Error:
    """An error with another value than the default in each of its arguments."""
    hints = get_type_hints(kind.__init__)
    return kind(**{name: VALUES[hints[name]] for name in inspect.signature(kind).parameters})


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_error_is_the_same_after_pickling(protocol):
    kinds = errors_of_the_package()
    assert {"Expired", "Overloaded", "DivergenceError"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        error = made(kind)
        error.add_note("seen while testing")
        same = pickle.loads(pickle.dumps(error, protocol))
        assert type(same) is kind
        assert (str(same), same.args, vars(same)) == (str(error), error.args, vars(error))


def test_every_dataclass_of_the_results_is_the_same_after_pickling():
    kinds = {kind for kind in vars(results).values() if is_dataclass(kind)}
    assert kinds == {Result, Score}, "add an example of a new one to RESULTS"
    for result in RESULTS:
        same = pickle.loads(pickle.dumps(result))
        assert (same.scores, same.model_id) == (result.scores, result.model_id)
        assert repr(same.error) == repr(result.error)
        assert str(same.error) == str(result.error)


def fail(error: Irv2Error) -> None:
    raise error


@pytest.mark.parametrize("error", [Expired("server", "late"), Overloaded("server", "is full", 0.5)])
def test_an_error_reaches_the_caller_of_a_process_pool(error):
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as pool, pytest.raises(type(error)) as raised:
        pool.submit(fail, error).result(60)
    assert str(raised.value) == str(error)
