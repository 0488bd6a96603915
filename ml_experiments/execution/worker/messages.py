"""What a client, a guard and a worker send each other; light to import, for every command does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ml_experiments import errors
from ml_experiments.errors import Error
from ml_experiments.runs.records import to_record
from ml_experiments.runs.spec import RunSpec


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker process starts with.

    Attributes:
        output: Where its standard output and error go.
        folder: The run folder; None for a worker that executes no run.
        secrets: What is taken out of the output when the client is gone.
        environment: Its environment variables.
        working_dir: Its working folder.
    """

    output: str
    folder: str | None
    secrets: tuple[str, ...]
    environment: dict[str, str]
    working_dir: str | None


@dataclass(frozen=True)
class Description:
    """An experiment with one config.

    Attributes:
        config: The validated config, as JSON.
        secrets: The secrets in the config.
        setup_key: Equal for runs that one set-up instance can serve; None where each run needs
            a process of its own.
        requirements: What the class's own `requirements` asks for.
        hub_models: The models on the Hub that the config names.
        local_models: The paths that it names for models and the like.
    """

    config: dict[str, Any]
    secrets: tuple[str, ...]
    setup_key: str | None
    requirements: tuple[str, ...]
    hub_models: tuple[str, ...]
    local_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunMessage:
    """A run for a worker.

    Attributes:
        spec: What to run.
        folder: The run folder.
        attempt: The attempt at the run.
        output: Where the output of the process goes.
        began_at: See `Supervision`.
        secrets: Values that no record may hold.
        setup_key: Whether, and for which later runs, the set-up instance is kept.
        hints: The class of the hints, as `module:Class`.
        reports_models: Whether to report the models that the run uses.
        addresses: Those of the machines of the run, this one's first, where they are several.
        goes_on_elsewhere: Whether the platform runs it again where its client is lost, so that it
            has not ended then; else it is cancelled.
    """

    spec: RunSpec
    folder: str
    attempt: int | None
    output: str
    began_at: float | None
    secrets: tuple[str, ...]
    setup_key: str | None
    hints: str
    reports_models: bool
    addresses: tuple[str, ...] = ()
    goes_on_elsewhere: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the message as JSON."""
        return dict(to_record(self))


def problem_of(error: Error) -> dict[str, Any]:
    """Return an error as JSON, for the process that asked."""
    facts = {name: value for name, value in vars(error).items() if name != "result"}
    return {"type": type(error).__name__, "message": str(error), "facts": facts}


def error_of(problem: dict[str, Any]) -> Error:
    """Return the error that another process has reported."""
    kind = getattr(errors, problem["type"], Error)
    error: Error = kind.__new__(kind)
    Exception.__init__(error, problem["message"])
    for name, value in problem["facts"].items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error
