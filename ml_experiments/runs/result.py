"""What came of a run: `RunResult`, its error and its artifacts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ml_experiments.errors import Error


class RunFailedError(Error):
    """Raised by `RunResult.raise_for_error()` when the run did not succeed.

    Attributes:
        result: The result of the run that failed.
    """

    def __init__(self, result: RunResult) -> None:
        error = result.error
        text = f"run {result.run_id} ended with status {result.status}"
        if error is not None:
            text += f": {error.kind}: {error.type}: {error.message}"
            if error.hint:
                text += f"\nhint: {error.hint}"
        super().__init__(text)
        self.result = result


class RunStatus(StrEnum):
    """Where a run stands."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"


class ErrorKind(StrEnum):
    """Whose fault an error is, or what ran out."""

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

    Attributes:
        kind: The cause, as one of a few kinds.
        type: The name of the exception class.
        message: The exception's own text.
        traceback: The experiment's own frames, without those of this package.
        hint: What to do about it; empty when nothing useful is known.
    """

    kind: ErrorKind
    type: str
    message: str
    traceback: str = ""
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the error as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunError:
        """Read back what `to_dict` wrote."""
        return cls(**{**data, "kind": ErrorKind(data["kind"])})


@dataclass(frozen=True)
class Artifact:
    """A file that a run left.

    Attributes:
        path: Relative to the run folder, with forward slashes.
        size_bytes: Size of the file.
        media_type: Its MIME type, guessed from the name.
    """

    path: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True)
class RunResult:
    """What came of a run.

    Attributes:
        results: What `run()` returned, decoded; a value that lives in a file is its
            descriptor, which `load()` reads. After an error, what could be kept.
        timings: Seconds by phase: `import_s`, `setup_s`, `run_s`, `total_s`.
        cost: US dollars, where money was spent: `estimate_usd`, `worst_case_usd`.
        environment: Python, packages that matter, machine and devices of the run.
        run_dir: The run folder on this machine.
    """

    run_id: str
    status: RunStatus
    experiment_class: str
    results: Any
    error: RunError | None = None
    artifacts: tuple[Artifact, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    run_dir: Path | None = None

    def raise_for_error(self) -> RunResult:
        """Return the result itself, or raise `RunFailedError` unless the run succeeded."""
        if self.status is not RunStatus.SUCCESS:
            raise RunFailedError(self)
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return the result as strict JSON, with the documented keys among its own."""
        from ml_experiments.serialization.encoder import to_json

        return {
            "run_id": self.run_id,
            "status": str(self.status),
            "experiment_class": self.experiment_class,
            "results": to_json(self.results),
            "error": self.error.to_dict() if self.error else None,
            "artifacts": [dataclasses.asdict(a) for a in self.artifacts],
            "timings": dict(self.timings),
            "environment": dict(self.environment),
            "cost": dict(self.cost),
            "run_dir": str(self.run_dir) if self.run_dir else None,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], run_dir: Path | None = None) -> RunResult:
        """Read back what `to_dict` wrote; `run_dir` says where the run folder is now."""
        from ml_experiments.serialization.typed_json import from_json

        return cls(
            run_id=data["run_id"],
            status=RunStatus(data["status"]),
            experiment_class=data["experiment_class"],
            results=from_json(data["results"]),
            error=RunError.from_dict(data["error"]) if data["error"] else None,
            artifacts=tuple(Artifact(**a) for a in data["artifacts"]),
            timings=dict(data["timings"]),
            environment=dict(data["environment"]),
            cost=dict(data["cost"]),
            run_dir=run_dir,
        )

    def load(self, descriptor: Mapping[str, Any]) -> Any:
        """Load the array, tensor, image, table or bytes that a descriptor in `results` names.

        Raises:
            RunFolderError: If the run folder isn't here, or the file is missing from it.
        """
        from ml_experiments.serialization.loading import load_file

        return load_file(descriptor, self.run_dir)
