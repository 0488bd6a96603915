"""Runs experiments in this process, where a debugger or a profiler can follow."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TextIO

from ml_experiments.backends.base import Backend, FinishedRunHandle, RunHandle
from ml_experiments.backends.local.backend import refuse_gpu
from ml_experiments.errors import BackendError, ConfigError
from ml_experiments.execution.describe import describe_experiment
from ml_experiments.execution.events import deliver
from ml_experiments.execution.execute import execute_run
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.interruptions import released_interrupt
from ml_experiments.execution.launch.preparing import with_processes
from ml_experiments.execution.logs import log_traceback, redact_log
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.warm_experiment import WarmExperiment
from ml_experiments.execution.worker.messages import Description
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.spec import PreparedRun


class DebugBackend(Backend):
    """This process: breakpoints work; the hard timeout does not."""

    name: ClassVar[str] = "debug"

    def __init__(self) -> None:
        super().__init__()
        self._warm = WarmExperiment()

    def describe(
        self,
        experiment: str,
        import_paths: tuple[str, ...],
        config: Any,
        seed: int,
        *,
        is_recorded: bool = False,
    ) -> tuple[Description, Any]:
        description = describe_experiment(
            experiment, import_paths, config, seed, is_recorded=is_recorded
        )
        return description, None

    def describe_each(
        self, experiment: str, import_paths: tuple[str, ...], configs: Sequence[Any], seed: int
    ) -> Iterator[Description | ConfigError]:
        for config in configs:
            try:
                yield describe_experiment(experiment, import_paths, config, seed)
            except ConfigError as e:
                yield e

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Refuse a GPU type, which this machine has or not, and a launcher."""
        refuse_gpu(run.spec)
        if run.spec.launch is not None:
            raise BackendError(
                f"launch={run.spec.launch!r} starts processes of its own; the debug backend runs "
                "in this one"
            )
        return with_processes(run, 0)

    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Execute the run now; the handle has its result."""
        spec = prepared.spec
        self.forget_fingerprint(prepared, folder)
        observer.started(spec)
        with (
            folder.log_file.open("a", encoding="utf-8") as log,
            _copy_output_to(log),
            released_interrupt(),
        ):
            result = execute_run(
                spec,
                folder,
                emit=lambda event: deliver(event, observer, spec),
                warm=self._warm,
                hints=Hints(),
                setup_key=prepared.setup_key,
                secrets=prepared.secrets,
            )
        redact_log(folder, Redactor(prepared.secrets))
        log_traceback(folder, result)
        observer.finished(spec, result)
        return FinishedRunHandle(spec, folder, result)

    def close(self) -> None:
        """Let go of what was set up."""
        self._warm.drop()


class _Tee:
    """Writes to a terminal and a file; everything else is the terminal's, which stays open.

    Attributes:
        is_unfinished: Whether the last line has no end yet.
    """

    def __init__(self, terminal: TextIO, file: TextIO) -> None:
        self._terminal = terminal
        self._file = file
        self.is_unfinished = False

    def write(self, text: str) -> int:
        if text:
            self.is_unfinished = not text.endswith("\n")
        self._file.write(text)
        return self._terminal.write(text)

    def flush(self) -> None:
        self._file.flush()
        self._terminal.flush()

    def end_line(self) -> None:
        """End the line on the terminal, if it has no end."""
        if self.is_unfinished:
            self._terminal.write("\n")
            self._terminal.flush()
        self.is_unfinished = False

    def close(self) -> None:
        self.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)


@contextmanager
def _copy_output_to(log: TextIO) -> Iterator[None]:
    before = sys.stdout, sys.stderr
    tees = sys.stdout, sys.stderr = _Tee(before[0], log), _Tee(before[1], log)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for tee in tees:
            tee.end_line()
