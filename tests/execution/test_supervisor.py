"""A cancel counts whenever it comes, also before the run has begun and amid much output."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ml_experiments import LocalBackend, run_experiment, submit_experiment
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


DELETES = """
import atexit, shutil
from ml_experiments import current_run

def folder_in(config):
    shutil.rmtree(current_run().output_dir.parent)
    return 3

def folder_at_exit(config):
    atexit.register(shutil.rmtree, current_run().output_dir.parent)
    return 3

def manifest(config):
    (current_run().output_dir.parent / "manifest.json").write_text("")
    return 3

def result_at_exit(config):
    atexit.register((current_run().output_dir.parent / "result.json").unlink)
    return 3

def fails(config):
    shutil.rmtree(current_run().output_dir.parent)
    raise ValueError("an error of its own")
"""


@pytest.mark.parametrize(
    ("name", "missing", "results"),
    [
        ("folder_in", "manifest.json is missing", 3),
        ("folder_at_exit", "result.json is missing", None),
        ("manifest", "manifest.json is not readable", 3),
        ("result_at_exit", "result.json is missing", None),
    ],
)
def test_a_run_that_deletes_its_own_records_is_told_so_and_not_cancelled(
    name: str, missing: str, results: int | None, tmp_path: Path
) -> None:
    (tmp_path / "deleting.py").write_text(DELETES)
    result = run_experiment(f"{tmp_path}/deleting.py:{name}", {}, observer=Observer())
    assert (result.status, result.results) == (RunStatus.ERROR, results)
    assert result.error is not None
    assert result.error.kind is ErrorKind.INFRASTRUCTURE
    assert missing in result.error.message
    assert "something has changed the files of the run folder" in result.error.hint
    assert result.error.traceback == ""


def test_an_error_of_a_run_that_deleted_its_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "deleting.py").write_text(DELETES)
    result = run_experiment(f"{tmp_path}/deleting.py:fails", {}, observer=Observer())
    assert result.error is not None
    assert result.error.message == "an error of its own"
