"""Choices of a prediction: one record for the command, Python and the dry run."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

import segpipe
from segpipe.cli.predict import command
from segpipe.core.errors import UsageError
from segpipe.predict.options import PredictOptions


def test_the_command_without_options_is_python_without_options() -> None:
    """Each field is one option of the command, and both have the same default."""
    names = {"help_option_names": ["-h", "--help"]}  # click keeps the first ones it meets for the whole process
    given = command.make_context("predict", ["-m", "work", "-i", "images", "-o", "masks"], **names).params
    for field, default in vars(PredictOptions()).items():
        assert (given[field] or None) == (default or None), field


def test_python_takes_every_field_and_nothing_else() -> None:
    documented = inspect.getdoc(segpipe.load) or ""
    assert all(f"`{field}`" in documented for field in vars(PredictOptions()))
    with pytest.raises(TypeError, match="mirrors"):
        segpipe.load("nowhere", mirrors=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"configurations": "2d"}, r"configurations: '2d', expected a list or tuple"),
        ({"folds": 0}, r"folds: 0, expected a list or tuple"),
        ({"max_memory_gib": 0.0}, r"max_memory_gib: 0.0, expected a number of GiB above 0"),
        ({"max_memory_gib": float("nan")}, r"max_memory_gib: nan"),
        ({"postprocessing": Path("steps.yaml"), "postprocesses": False}, r"exclude each other"),
    ],
)
def test_options_are_right_once_they_exist(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PredictOptions(**wrong)  # type: ignore[arg-type]
