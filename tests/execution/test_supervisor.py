"""A cancel counts whenever it comes, also before the run has begun and amid much output."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ml_experiments import LocalBackend, submit_experiment
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.result import ErrorKind, RunStatus
from ml_experiments.runs.spec import RunSpec
from tests.support.experiments import Ends
from tests.support.waiting import wait_until

WAIT_S = 30.0
FLOOD = """
import time

def flood(config):
    ends_at = time.monotonic() + 10
    while time.monotonic() < ends_at:
        print("x" * 99_999)
        time.sleep(0.002)
"""


class SlowReader(Observer):
    """Takes 4 MB a second, as a terminal over a network may."""

    def __init__(self) -> None:
        self.shown = b""
        self.notices: list[str] = []

    def log(self, spec: RunSpec, data: bytes) -> None:
        self.shown += data
        time.sleep(len(data) / 4e6)

    def notice(self, spec: RunSpec, text: str) -> None:
        self.notices.append(text)


def test_a_cancel_while_the_worker_starts_is_not_lost() -> None:
    with LocalBackend() as backend:
        before = set(psutil.Process().children())
        handle = submit_experiment(Ends, {"how": "sleeps"}, backend=backend)
        wait_until(lambda: set(psutil.Process().children()) - before, "the start of a worker")
        handle.cancel()
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.CANCELLED
    assert handle.folder.read_result().status is RunStatus.CANCELLED


def end_a_flood(
    folder: Path, act: Callable[..., object], timeout_s: float | None = None
) -> tuple[SlowReader, str | None, Path, float]:
    (folder / "flooding.py").write_text(FLOOD)
    reader = SlowReader()
    with LocalBackend() as backend:
        handle = submit_experiment(
            f"{folder}/flooding.py:flood",
            backend=backend,
            observer=reader,
            timeout_s=timeout_s,
        )
        wait_until(lambda: reader.shown, "output")
        started = time.monotonic()
        act(handle)
        result = handle.result(WAIT_S)
        took_s = time.monotonic() - started
    kind = result.error.kind if result.error else str(result.status)
    return reader, kind, handle.folder.log_file, took_s


def check_that_the_tail_was_shown(reader: SlowReader, log_file: Path) -> None:
    assert len(reader.shown) < log_file.stat().st_size
    # the log has the traceback, too, which is not part of the output
    assert reader.shown[-50_000:] in log_file.read_bytes()[-70_000:]
    (notice,) = reader.notices
    assert "came faster than it could be shown" in notice
    assert str(log_file) in notice


def test_a_cancel_comes_through_amid_output_that_is_faster_than_its_reader(tmp_path: Path) -> None:
    reader, status, log_file, took_s = end_a_flood(
        tmp_path, lambda handle: (time.sleep(0.5), handle.cancel())
    )
    assert status == "cancelled"
    assert took_s < 8
    check_that_the_tail_was_shown(reader, log_file)


@pytest.mark.slow
def test_a_timeout_comes_through_amid_output_that_is_faster_than_its_reader(tmp_path: Path) -> None:
    reader, kind, log_file, took_s = end_a_flood(tmp_path, lambda _: None, timeout_s=2.0)
    assert kind == ErrorKind.TIMEOUT
    assert took_s < 10
    check_that_the_tail_was_shown(reader, log_file)
