"""One run in a list: what is read from its folder, and kept in the index."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError, suggest
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.labels import read_labels
from ml_experiments.runs.result import RunResult

# of one run; a result may hold millions of numbers
MAX_VALUES = 1000
MAX_STRING_LENGTH = 1000

_STAMPED = ("spec.json", "manifest.json", "result.json", "labels.json")
_MAX_INT = 2**63 - 1
Scalar = str | int | float | bool


@dataclass(frozen=True)
class RunRow:
    """One run in a list.

    Attributes:
        sweep: The tag `sweep`.
        seconds: How long it took; None until it has ended.
        cost_usd: What all attempts cost by estimate, where money was spent.
        billed_usd: What Modal has billed for them; None until `costs reconcile` has read it.
        error: `kind: message`, when it ended in an error.
        problem: Why the folder can't be read; the other fields are then unknown.
        values: Config, results and tags by path, such as `config.lr`; see `flatten`.
    """

    run_id: str
    status: str | None = None
    experiment: str | None = None
    name: str | None = None
    backend: str | None = None
    gpu: str | None = None
    sweep: str | None = None
    created_at: str | None = None
    seconds: float | None = None
    cost_usd: float | None = None
    billed_usd: float | None = None
    attempts: int | None = None
    seed: int | None = None
    error: str | None = None
    error_kind: str | None = None
    note: str | None = None
    problem: str | None = None
    values: dict[str, Scalar] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON; infinities are strings."""
        values = {
            path: str(value) if isinstance(value, float) and math.isinf(value) else value
            for path, value in self.values.items()
        }
        return {**asdict(self), "values": values}

    def get(self, path: str) -> Any:
        """Return a column, or a value such as `config.lr`; None if the run has none."""
        return self.values.get(path, None if path == "values" else getattr(self, path, None))


# what a list can be filtered by, sorted by, and show, besides `config.…`, `results.…`, `tags.…`
COLUMNS = tuple(name for name in RunRow.__dataclass_fields__ if name != "values")
# the headings of `runs list`, and what people call these columns
_ALSO_CALLED = {
    "run": "run_id",
    "id": "run_id",
    "where": "backend",
    "date": "created_at",
    "began": "created_at",
    "started": "created_at",
    "cost": "cost_usd",
}


def suggest_column(name: str, paths: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the column or path of a value that may be meant, or ``.

    Args:
        name: A name that is neither.
        paths: The paths of the values that runs have.
    """
    known = tuple(paths)
    inside = next((path for path in known if path.endswith(f".{name}")), None)
    meant = _ALSO_CALLED.get(name, inside)
    return suggest(name, (*COLUMNS, *known)) if meant is None else f" (did you mean {meant!r}?)"


def read_row(folder: RunFolder) -> RunRow:
    """Return the row of a run folder."""
    try:
        spec, outcome, labels = folder.read_spec(), folder.outcome(), read_labels(folder)
    except RunFolderError as e:
        return RunRow(folder.path.name, problem=_storable(str(e)))
    error = outcome.error
    values = dict(_values(spec.config, outcome, labels.tags))
    return RunRow(
        run_id=folder.path.name,
        status=str(outcome.status),
        experiment=_storable(spec.experiment),
        name=_storable(labels.name),
        backend=_storable(spec.backend),
        gpu=_storable(spec.gpu),
        sweep=_storable(labels.tags.get("sweep")),
        created_at=_storable(spec.created_at),
        seconds=outcome.timings.get("total_s"),
        cost_usd=_cost(outcome),
        billed_usd=outcome.cost.get("billed_usd"),
        attempts=len(outcome.attempts) or None,
        seed=spec.seed if abs(spec.seed) <= _MAX_INT else None,
        error=_storable(f"{error.kind}: {error.message}") if error else None,
        error_kind=str(error.kind) if error else None,
        note=_storable(labels.note),
        values=values,
    )


def read_stamp(path: Path) -> str:
    """Return what changes when one of the files changes that a row is read from."""
    parts = []
    for name in _STAMPED:
        try:
            status = os.stat(f"{path}/{name}")  # noqa: PTH116 - a hot path
        except OSError:
            parts.append("-")
        else:
            parts.append(f"{status.st_mtime_ns}:{status.st_size}:{status.st_ino}")
    return " ".join(parts)


def has_result(stamp: str) -> bool:
    """Return whether there was a `result.json` when a stamp was read."""
    return stamp.split(" ")[_STAMPED.index("result.json")] != "-"


def flatten(path: str, value: Any) -> Iterator[tuple[str, Scalar]]:
    """Yield the numbers and strings of a JSON value with their paths, such as `config.optim.lr`.

    A list is one value, its JSON. A value that JSON has no type for is the string in its record,
    a file its path. Long strings are cut.
    """
    if isinstance(value, bool):
        yield path, value
    elif isinstance(value, int):
        yield path, value if abs(value) <= _MAX_INT else float(value)
    elif isinstance(value, float):
        yield path, value
    elif isinstance(value, str):
        yield path, value[:MAX_STRING_LENGTH]
    elif isinstance(value, list):
        if len(value) <= MAX_STRING_LENGTH:
            yield path, json.dumps(value)[:MAX_STRING_LENGTH]
    elif isinstance(value, dict):
        if isinstance(value.get("$type"), str):
            yield from _flatten_typed(path, value)
            return
        for key, member in value.items():
            yield from flatten(f"{path}.{key}", member)


def _flatten_typed(path: str, value: dict[str, Any]) -> Iterator[tuple[str, Scalar]]:
    kept = value.get("value", value.get("path", value.get("escaped")))
    if value["$type"] == "float" and kept in ("inf", "-inf"):
        yield path, float(kept)
    elif isinstance(kept, str):
        yield path, kept[:MAX_STRING_LENGTH]
    elif isinstance(value.get("hex"), str):
        try:
            yield path, float(int(value["hex"], 16))
        except (ValueError, OverflowError):
            return


def _values(
    config: dict[str, Any], outcome: RunResult, tags: dict[str, str]
) -> Iterator[tuple[str, Scalar]]:
    count = 0
    groups = (("tags", tags), ("config", config), ("results", outcome.results_json))
    for path, group in groups:
        for name, value in flatten(path, group):
            count += 1
            if count > MAX_VALUES:
                return
            yield _storable(name), _storable(value) if isinstance(value, str) else value


def _cost(outcome: RunResult) -> float | None:
    costs = [a.cost_usd for a in outcome.attempts if a.cost_usd is not None]
    return sum(costs) if costs else outcome.cost.get("estimate_usd")


def _storable(string: Any) -> Any:
    """Return a string without lone surrogates, which SQLite does not take."""
    if string is None or string.isascii():
        return string
    return string.encode("utf-8", "backslashreplace").decode("utf-8")
