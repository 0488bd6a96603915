"""Tracebacks begin with the user's own code, and are never longer than a record may be."""

from __future__ import annotations

import pytest

from ml_experiments.errors import ConfigError, ExperimentPathError
from ml_experiments.experiment.importing import load_experiment
from ml_experiments.experiment.tracebacks import (
    MAX_TRACEBACK,
    chain,
    describe_error,
    format_traceback,
    place_of,
)
from ml_experiments.tasks.text_to_image.pictures.file_names import file_names


def raised(error: BaseException) -> BaseException:
    """Raise an error and return it."""
    try:
        raise error
    except BaseException as e:
        return e


def test_this_packages_own_frames_are_left_out() -> None:
    try:
        load_experiment("no_such_module.Train")
    except ExperimentPathError as e:
        own = raised(e.with_traceback(None))
    own.__cause__ = None
    text = format_traceback(own)
    assert "test_tracebacks.py" in text
    assert "importing.py" not in text


def test_what_a_ready_experiment_raises_on_purpose_is_told_by_its_message() -> None:
    with pytest.raises(ConfigError) as told:
        file_names("x", [{"index": 0}, {"index": 1}], "png")
    assert format_traceback(told.value) == ""
    assert "test_tracebacks.py" in format_traceback(raised(ConfigError("the user's own")))


def test_what_an_import_failed_with_is_shown_once() -> None:
    outer = ExperimentPathError(f"importing a failed: {describe_error(raised(KeyError('lr')))}")
    outer.__cause__ = raised(KeyError("lr"))
    assert format_traceback(raised(outer)).count("KeyError") == 1


def test_a_traceback_without_end_is_cut_in_its_middle() -> None:
    text = format_traceback(raised(ValueError("x" * 2 * MAX_TRACEBACK + "end")))
    assert len(text) < MAX_TRACEBACK + 100
    assert text.rstrip().endswith("end")


def test_a_circle_of_causes_ends() -> None:
    first, second = raised(ValueError(1)), raised(ValueError(2))
    first.__cause__, second.__cause__ = second, first
    assert list(chain(first)) == [first, second]
    assert "ValueError: 1" in format_traceback(first)


def test_the_place_is_the_last_frame() -> None:
    place = place_of(raised(ValueError()))
    assert place is not None
    assert "test_tracebacks.py:" in place
    assert place_of(ValueError()) is None
