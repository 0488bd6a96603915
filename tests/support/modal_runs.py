"""What the tests of runs on Modal need besides experiments."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import modal

from ml_experiments.backends.modal.mounts import runs_volume
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec
from modal_emulator import Emulator
from modal_emulator.control.info import ContainerInfo
from tests.support.waiting import wait_until

WAIT_S = 120


class Recorder(Observer):
    """Keeps the events that it receives."""

    def __init__(self) -> None:
        self.lines = b""
        self.events: list[str] = []
        self.notices: list[str] = []
        self.metric_values: list[Any] = []
        self.progress_texts: list[str] = []
        self.printed = threading.Event()

    def started(self, spec: RunSpec) -> None:
        self.events.append("started")

    def log(self, spec: RunSpec, data: bytes) -> None:
        self.lines += data
        self.printed.set()

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        self.events.append(f"progress {done:g}/{total:g}")
        self.progress_texts.append(text)

    def metrics(self, spec: RunSpec, metrics: Any, step: int | None) -> None:
        self.events.append(f"metrics at {step}")
        self.metric_values.append(metrics)

    def notice(self, spec: RunSpec, text: str) -> None:
        self.notices.append(text)

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self.events.append(f"finished: {result.status}")


def run_command(
    emulator: Emulator, folder: Path, *arguments: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run `ml-experiments` in a folder, `before` it a program that starts others."""
    return subprocess.run(
        [*before, sys.executable, "-m", "ml_experiments", *arguments],
        env={**os.environ, **emulator.environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def start_command(emulator: Emulator, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start `ml-experiments` in a folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "ml_experiments", *arguments],
        env={**os.environ, **emulator.environment},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def folder_of(result: RunResult) -> RunFolder:
    assert result.run_dir is not None
    return RunFolder(result.run_dir)


def function_of(emulator: Emulator, run_id: str) -> Any:
    """Return the function that the server received for the app of a run."""
    [found] = [f for f in emulator.functions("run_remote") if f.app_name.endswith(run_id)]
    return found


def containers_of(emulator: Emulator, folder: RunFolder) -> list[ContainerInfo]:
    """Return the containers of a run's function; the server has those of other tests as well."""
    place = folder.read_manifest().modal
    assert place is not None
    [call] = [each for each in emulator.calls() if each.call_id == place.function_call_id]
    return [each for each in emulator.containers() if each.function_id == call.function_id]


def wait_for_checkpoint(run_id: str) -> None:
    """Return when a commit has brought a run's first checkpoint to the volume."""

    def is_there() -> bool:
        try:
            return bool(runs_volume().listdir(f"/{run_id}/checkpoints"))
        except modal.exception.NotFoundError:
            return False

    wait_until(is_there, "the commit of a checkpoint")
