"""What came of a run: `RunResult`, its error and its artifacts."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ml_experiments.errors import Error, RunFolderError
from ml_experiments.runs.records import parse_record, read_metrics
from ml_experiments.runs.reports.html import result_html
from ml_experiments.serialization.loading import load_file
from ml_experiments.serialization.typed_json import from_json

_MEMORY_USAGE = ("peak_memory_bytes", "peak_gpu_memory_bytes")


class RunFailedError(Error):
    """Raised by `RunResult.raise_for_error()` when the run did not succeed.

    Example:
        ```python
        from ml_experiments import RunFailedError, run_experiment

        def train():
            raise ValueError("a bad batch")

        if __name__ == "__main__":
            try:
                run_experiment(train).raise_for_error()
            except RunFailedError as e:
                print(e.result.error.message)  # a bad batch
        ```

    Attributes:
        result: The result of the run that failed.
    """

    def __init__(self, result: RunResult) -> None:
        error = result.error
        message = f"run {result.run_id} ended with status {result.status}"
        if error is not None:
            message += f": {error.kind}: {error.type}: {error.message}"
            if error.hint:
                message += f"\nhint: {error.hint}"
        super().__init__(message)
        self.result = result


class RunStatus(StrEnum):
    """Where a run stands.

    Example:
        ```python
        from ml_experiments import RunStatus, run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            print(run_experiment(square).status is RunStatus.SUCCESS)  # True
        ```
    """

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def has_ended(self) -> bool:
        """Whether the run has come to its end, in whatever way."""
        return self not in (RunStatus.PENDING, RunStatus.RUNNING)


class ErrorKind(StrEnum):
    """Whose fault an error is, or what ran out.

    Example:
        ```python
        from ml_experiments import ErrorKind, run_experiment

        def train():
            import a_package_that_is_not_installed

        if __name__ == "__main__":
            print(run_experiment(train).error.kind is ErrorKind.IMPORT)  # True
        ```
    """

    CONFIG = "config"
    IMPORT = "import"
    CUDA_OOM = "cuda_oom"
    HOST_OOM = "host_oom"
    TIMEOUT = "timeout"
    PREEMPTED = "preempted"
    EXPERIMENT = "experiment"
    INFRASTRUCTURE = "infrastructure"
    AUTH = "auth"


@dataclass(frozen=True)
class RunError:
    """Why a run did not succeed.

    Example:
        ```python
        from ml_experiments import run_experiment

        def train():
            raise ValueError("a bad batch")

        if __name__ == "__main__":
            error = run_experiment(train).error
            print(error.kind, error.type, error.message)  # experiment ValueError a bad batch
        ```

    Attributes:
        kind: The cause, as one of a few kinds.
        type: The name of the exception class.
        message: The exception's own message.
        traceback: The experiment's own frames, without those of this package.
        hint: What to do about it; empty when nothing useful is known.
    """

    kind: ErrorKind
    type: str
    message: str
    traceback: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Artifact:
    """A file that a run left.

    Example:
        ```python
        from ml_experiments import current_run, run_experiment

        def train():
            (current_run().output_dir / "notes.txt").write_text("done")

        if __name__ == "__main__":
            [artifact] = run_experiment(train).artifacts
            print(artifact.path, artifact.size_bytes)  # artifacts/notes.txt 4
        ```

    Attributes:
        path: Relative to the run folder, with forward slashes.
        size_bytes: Size of the file.
        media_type: Its MIME type, guessed from the name.
    """

    path: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True)
class Attempt:
    """One try at a run; resuming a run is another.

    Attributes:
        number: 1 for the first.
        gpu: The GPUs that it had; on Modal, until it has started, what was asked for.
        submission: Which submission of the run it belongs to: Modal itself runs one that it
            preempts again.
        place: The machine, and on Modal the GPU and the call.
        began_at: When it was submitted, in ISO 8601.
        seconds: How long it executed; None if unknown.
        container_s: How many seconds of its container on Modal count for it.
        cost_usd: What it cost by estimate, where money was spent.
        at_most_usd: The most that it can have cost, as far as its container knew; see
            `RunResult.cost`.
    """

    number: int
    status: RunStatus
    place: str
    began_at: str
    seconds: float | None = None
    error: RunError | None = None
    cost_usd: float | None = None
    at_most_usd: float | None = None
    container_s: float | None = None
    gpu: str | None = None
    submission: int | None = None

    @property
    def kind(self) -> ErrorKind | None:
        """The cause of its end; None without an error."""
        return None if self.error is None else self.error.kind


@dataclass(frozen=True, repr=False)
class RunResult:
    """What came of a run.

    Example:
        ```python
        from ml_experiments import run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            result = run_experiment(square, {"n": 3})
            print(result.status, result.results, result.error)  # success 9 None
            print(result.run_dir / "result.json")
        ```

    Attributes:
        results_json: What `run()` returned, as JSON; `results` has it decoded. After an error,
            what could be kept.
        timings: Seconds by phase: `import_s`, `setup_s`, `run_s`, `total_s`. `setup_saved_s` is how
            long the `setup()` of an earlier run took that served this one, 0 where this run did
            it; `container_s`, how many seconds of its container on Modal count for it.
        cost: US dollars, where money was spent: `estimate_usd`; `at_most_usd`, which counts the
            start and the last wait of the container too, and all CPU and memory that it could
            use; `worst_case_usd`, which was known before; `controller_usd`, the most that the
            container has cost that made the attempts at a detached run; and once `costs
            reconcile` has read it `billed_usd`, for all attempts.
        environment: Python, packages that matter, machine and devices of the run.
        attempts: Every attempt at the run, the one that led to this result last.
        run_dir: The run folder on this machine.
        is_reused: Whether it is an earlier run's, which was returned instead of a new one.
    """

    run_id: str
    status: RunStatus
    experiment_class: str
    results_json: Any = None
    error: RunError | None = None
    artifacts: tuple[Artifact, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    run_dir: Path | None = None
    is_reused: bool = False

    @functools.cached_property
    def results(self) -> Any:
        """What `run()` returned; a value that lives in a file is its descriptor, for `load()`.

        Raises:
            RunFolderError: If the record of the results is damaged.
        """
        try:
            return from_json(self.results_json)
        # an OSError comes of a time zone that is a folder of the system's
        except (TypeError, KeyError, ValueError, OSError, Error) as e:
            place = self.run_dir / "result.json" if self.run_dir else f"run {self.run_id}"
            raise RunFolderError(f"{place}: the results are damaged: {e}") from e

    @functools.cached_property
    def metrics(self) -> tuple[dict[str, Any], ...]:
        """What the run logged, in order: `step`, `time` and `metrics` of each call.

        Raises:
            RunFolderError: If the file of the metrics is not readable.
        """
        return () if self.run_dir is None else tuple(read_metrics(self.run_dir / "metrics.jsonl"))

    def __repr__(self) -> str:
        """Return status, id, experiment, and the results or the error, in one line."""
        what = "" if self.results_json is None else f" {self.results_json!r:.200}"
        if self.error is not None:
            what = f" {self.error.kind}: {self.error.type}: {self.error.message:.200}"
        seconds = f" in {self.timings['total_s']:.2f} s" if "total_s" in self.timings else ""
        return f"<RunResult {self.run_id} {self.experiment_class}: {self.status}{seconds}{what}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: status, config, results and the first pictures."""
        return result_html(self)

    def raise_for_error(self) -> RunResult:
        """Return the result itself, or raise `RunFailedError` unless the run succeeded."""
        if self.status is not RunStatus.SUCCESS:
            raise RunFailedError(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the result as strict JSON, with the documented keys among its own."""
        return {
            "run_id": self.run_id,
            "status": str(self.status),
            "experiment_class": self.experiment_class,
            "results": self.results_json,
            "error": dataclasses.asdict(self.error) if self.error else None,
            "artifacts": [dataclasses.asdict(a) for a in self.artifacts],
            "timings": dict(self.timings),
            "environment": dict(self.environment),
            "cost": dict(self.cost),
            "attempts": [dataclasses.asdict(attempt) for attempt in self.attempts],
            "run_dir": str(self.run_dir) if self.run_dir else None,
            "is_reused": self.is_reused,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], run_dir: Path | None = None) -> RunResult:
        """Read back what `to_dict` wrote; `run_dir` says where the run folder is now.

        Raises:
            ValueError: If it is not a run's result.
        """
        if "results" not in data:
            raise ValueError("'results' is missing")
        record = {**data, "results_json": None, "run_dir": None}
        result = parse_record(cls, record)
        for name in _MEMORY_USAGE:
            if not isinstance(result.environment.get(name, 0), int):
                raise ValueError(f"{name} is {result.environment[name]!r:.50}, not a number")
        return dataclasses.replace(result, results_json=data["results"], run_dir=run_dir)

    def load(self, descriptor: Mapping[str, Any]) -> Any:
        """Load the array, tensor, image, table or bytes that a descriptor in `results` names.

        Raises:
            RunFolderError: If the run folder isn't here, or the file is missing from it.
        """
        return load_file(descriptor, self.run_dir)
