"""What a run reports while it executes, as objects and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ml_experiments.execution.observer import Observer
from ml_experiments.runs.records import parse_record, to_record
from ml_experiments.runs.spec import RunSpec


@dataclass(frozen=True)
class Started:
    """The run has started to execute."""


@dataclass(frozen=True)
class Notice:
    """What whoever makes the attempts at a run has to tell."""

    text: str


@dataclass(frozen=True)
class Progress:
    """How far the experiment is, as it reports."""

    done: float
    total: float | None
    text: str


@dataclass(frozen=True)
class Metrics:
    """What the experiment has logged, as JSON."""

    metrics: dict[str, Any]
    step: int | None


@dataclass(frozen=True)
class ModelsUsed:
    """Repositories of the model cache that the run uses, as `models--org--name`."""

    folders: tuple[str, ...]


@dataclass(frozen=True)
class CheckpointSaved:
    """The experiment has saved a checkpoint."""


@dataclass(frozen=True)
class Finished:
    """The run has ended.

    Attributes:
        has_result: Whether its result is in the run folder.
        stays: Whether its process waits for another run.
        needs_process: Whether it was only checked here, and needs a process of its own.
        result: The result as JSON, where it could not be written.
    """

    has_result: bool = True
    stays: bool = False
    needs_process: bool = False
    result: dict[str, Any] | None = None


Event = Started | Notice | Progress | Metrics | ModelsUsed | CheckpointSaved | Finished

_KINDS: dict[str, type[Event]] = {
    "started": Started,
    "notice": Notice,
    "progress": Progress,
    "metrics": Metrics,
    "models_used": ModelsUsed,
    "checkpoint_saved": CheckpointSaved,
    "finished": Finished,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def event_to_json(event: Event) -> dict[str, Any]:
    """Return an event as JSON."""
    return {"event": _NAMES[type(event)], **to_record(event)}


def event_from_json(data: Any) -> Event:
    """Return the event of `event_to_json`.

    Raises:
        ValueError: If it is none.
    """
    kind = _KINDS.get(data.get("event", "")) if isinstance(data, dict) else None
    if kind is None:
        raise ValueError(f"{data!r:.100} is not an event")
    return parse_record(kind, data)


def deliver(event: Event, observer: Observer, spec: RunSpec) -> None:
    """Pass an event of a run on to an observer; its end is not one that observers get here."""
    match event:
        case Started():
            observer.started(spec)
        case Notice(text):
            observer.notice(spec, text)
        case Progress(done, total, text):
            observer.progress(spec, done, total, text)
        case Metrics(metrics, step):
            observer.metrics(spec, metrics, step)
