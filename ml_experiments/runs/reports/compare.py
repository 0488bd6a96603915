"""Several runs beside each other: where their configs differ, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.rows import RunRow, read_row

_ALWAYS = ("status", "seconds")
_IF_DIFFERENT = ("experiment", "name", "backend", "gpu", "seed", "attempts", "cost_usd", "error")


@dataclass(frozen=True)
class Comparison:
    """A table with a column for each run.

    Attributes:
        runs: Their ids.
        rows: What is compared, and the value of each run; None where a run has none.
        same: How many values of their configs are equal, and so left out.
    """

    runs: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Any, ...]], ...]
    same: int

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return {
            "runs": list(self.runs),
            "values": {name: list(values) for name, values in self.rows},
            "same": self.same,
        }


def compare_runs(folders: Sequence[RunFolder], *, shows_all: bool = False) -> Comparison:
    """Return runs beside each other.

    Args:
        folders: The run folders.
        shows_all: Whether values of the config that are equal are there too.
    """
    rows = [read_row(folder) for folder in folders]
    paths = sorted({path for row in rows for path in row.values})
    inputs = [path for path in paths if not _is_result(path)]
    outputs = [path for path in paths if _is_result(path)]
    named: list[str] = [*_ALWAYS, *(n for n in _IF_DIFFERENT if _differs(rows, n))]
    different = [path for path in inputs if _differs(rows, path)]
    shown = [*named, *(inputs if shows_all else different), *outputs]
    if any(row.problem for row in rows):
        shown.insert(0, "problem")
    return Comparison(
        tuple(row.run_id for row in rows),
        tuple((name, tuple(row.get(name) for row in rows)) for name in shown),
        0 if shows_all else len(inputs) - len(different),
    )


def _is_result(path: str) -> bool:
    return path == "results" or path.startswith("results.")


def _differs(rows: Sequence[RunRow], name: str) -> bool:
    first = rows[0].get(name)
    return any(row.get(name) != first for row in rows[1:])
