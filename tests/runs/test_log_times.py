"""Where in a log begins what was printed since a moment."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.log_times import LogTimes, offset_since


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Return a log of which two lines were printed 100 s ago, two 50 s ago."""
    file = tmp_path / "log.txt"
    file.write_text("one\ntwo\nthree\nfour\n")
    now = time.time()
    (tmp_path / ".log-times").write_text(f"{now - 100:.3f} 0\n{now - 50:.3f} 2\nbro")
    return file


@pytest.mark.parametrize(
    ("age_s", "printed"),
    [(1000, "one\ntwo\nthree\nfour\n"), (60, "three\nfour\n"), (50.5, "three\nfour\n"), (9, "")],
)
def test_what_was_printed_since_a_moment_is_the_end_of_the_log(
    log: Path, age_s: float, printed: str
) -> None:
    offset = offset_since(log, time.time() - age_s)
    assert log.read_text()[offset:] == printed


def test_secrets_that_are_taken_out_later_move_nothing(log: Path) -> None:
    log.write_text(log.read_text().replace("one", "[redacted]"))
    assert log.read_text()[offset_since(log, time.time() - 60) :] == "three\nfour\n"


def test_another_attempt_is_counted_from_the_end_of_the_one_before(log: Path) -> None:
    times = LogTimes(log)
    with log.open("a") as file:
        file.write("five\nsix")
    times.note(b"five\n")
    times.note(b"six")
    assert log.read_text()[offset_since(log, time.time() - 9) :] == "five\nsix"


def test_a_log_without_times_is_told_and_an_empty_one_has_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with pytest.raises(RunFolderError, match="not readable"):
        offset_since(log, 0)
    log.touch()
    assert offset_since(log, 0) == 0
    log.write_text("debugged\n")
    with pytest.raises(RunFolderError, match="leave out --since"):
        offset_since(log, 0)
