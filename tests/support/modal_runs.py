"""What the tests of runs on Modal need besides experiments."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import modal

from ml_experiments.backends.modal.billing.prices import container_usd_per_s, host_usd_per_s
from ml_experiments.backends.modal.detached.containers import most_usd_per_s
from ml_experiments.backends.modal.gpus import parse_gpu
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


def most_usd_per_s_on(gpu: str) -> float:
    """Return the price of a container with all the CPU and memory that its limits allow.

    Args:
        gpu: Its GPU; the container of a controller has none.
    """
    if not gpu:
        return most_usd_per_s()
    [choice] = parse_gpu(gpu.lower()).choices
    return container_usd_per_s(choice, 16, 2 * choice.memory_gb)


def most_usd_of_controller(emulator: Emulator, function: str, app: str) -> float:
    """Return the most that all calls of a controller can cost by what the server was asked for."""
    [found] = [f for f in emulator.functions(function) if f.app_name.endswith(app)]
    assert found.cpu is not None
    assert found.memory_mb is not None
    (_, cores), (_, mib) = found.cpu, found.memory_mb
    assert cores is not None
    assert mib is not None
    return host_usd_per_s(cores, mib / 1024) * found.timeout_s * (1 + found.retries)


def handed_out_usd(containers: Iterable[ContainerInfo]) -> float:
    """Return what the server has handed out, at the most that it can cost."""
    return sum(
        ((each.ended_at or time.time()) - each.started_at) * most_usd_per_s_on(each.gpu)
        for each in containers
    )


def wait_for_checkpoint(run_id: str) -> None:
    """Return when a commit has brought a run's first checkpoint to the volume."""

    def is_there() -> bool:
        try:
            return bool(runs_volume().listdir(f"/{run_id}/checkpoints"))
        except modal.exception.NotFoundError:
            return False

    wait_until(is_there, "the commit of a checkpoint")
