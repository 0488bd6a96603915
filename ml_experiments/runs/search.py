"""Old runs from Python: one by its id, several by filters, all as a table."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Unpack

from annotated_types import Ge
from typing_extensions import Doc, TypedDict

from ml_experiments.config.options import read_options
from ml_experiments.errors import Error, RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.index.rows import COLUMNS, RunRow
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.result import RunResult
from ml_experiments.settings import runs_dir as default_runs_dir

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


class RunFilters(TypedDict, total=False):
    """Which runs, and in which order; every given part has to hold."""

    status: Annotated[str | Sequence[str] | None, Doc("One status, or several.")]
    experiment: Annotated[str | None, Doc("Its path, or the end of it; * is a wildcard.")]
    name: Annotated[str | None, Doc("Its name; * is a wildcard.")]
    tags: Annotated[Mapping[str, str] | None, Doc("Each with this value; * is a wildcard.")]
    gpu: Annotated[str | None, Doc("The GPU asked for; * is a wildcard.")]
    backend: Annotated[str | None, Doc("local or modal.")]
    sweep: Annotated[str | None, Doc("The tag `sweep`; * is a wildcard.")]
    since: Annotated[str | None, Doc("A date such as 2026-11-25, or an age such as 7d.")]
    until: Annotated[str | None, Doc("The same.")]
    sort: Annotated[str | None, Doc("A column or a value; `-` first puts the largest first.")]
    limit: Annotated[int | None, Ge(0), Doc("At most so many; None for all.")]


def load_run(run: str = "last", *, runs_dir: Path | str | None = None) -> RunResult:
    """Return what came of an old run, or where one stands that has not ended.

    Example:
        ```python
        from ml_experiments import load_run, run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            run_experiment(square, {"n": 3})
            print(load_run("last").results)  # 9
        ```

    Args:
        run: Its id, the beginning of one, its name, or `last`.
        runs_dir: The folder of the run folders; by default what the settings say.

    Raises:
        RunNotFoundError: If none or several match.
        RunFolderError: If its folder is not readable.
    """
    return RunRegistry(_folder(runs_dir)).find(run).outcome()


def find_runs(
    where: str | None = None,
    *,
    runs_dir: Path | str | None = None,
    **filters: Unpack[RunFilters],
) -> list[RunResult]:
    """Return the runs that a condition and filters hold for, the newest first.

    A folder that can't be read is left out, with a warning in the log.

    Example:
        ```python
        from ml_experiments import find_runs, run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            for n in (1, 2, 3):
                run_experiment(square, {"n": n})
            found = find_runs("config.n > 1", sort="results")
            print([result.results for result in found])  # [4, 9]
        ```

    Args:
        where: A condition such as `config.lr < 1e-3 and results.accuracy > 0.9`.
        runs_dir: The folder of the run folders; by default what the settings say.
        **filters: See `RunFilters`.

    Raises:
        ConfigError: If a filter can't be understood.
    """
    folder = _folder(runs_dir)
    return list(_outcomes(folder, _rows(folder, "find_runs", where, filters)))


def runs_dataframe(
    where: str | None = None,
    *,
    runs_dir: Path | str | None = None,
    **filters: Unpack[RunFilters],
) -> pd.DataFrame:
    """Return one row for each run, with its config, results and tags as columns.

    It takes what `find_runs` takes, and pandas: `pip install 'ml_experiments[results]'`.

    Example:
        ```python
        from ml_experiments import run_experiment, runs_dataframe

        def square(n=2):
            return {"area": n * n}

        if __name__ == "__main__":
            for n in (1, 2, 3):
                run_experiment(square, {"n": n})
            table = runs_dataframe("config.n > 1", sort="config.n")
            print(table["results.area"].tolist())  # [4, 9]
        ```

    Raises:
        ConfigError: If a filter can't be understood.
        Error: If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as e:
        raise Error(
            "runs_dataframe needs pandas; install it with: pip install 'ml_experiments[results]'"
        ) from e
    rows = _rows(_folder(runs_dir), "runs_dataframe", where, filters)
    columns = [name for name in COLUMNS if name != "problem"]
    paths = sorted({path for row in rows for path in row.values})
    table = pd.DataFrame(
        {name: _column([row.get(name) for row in rows]) for name in (*columns, *paths)},
    )
    table["created_at"] = pd.to_datetime(table["created_at"], utc=True, format="ISO8601")
    return table.set_index("run_id")


def _column(values: list[Any]) -> list[Any]:
    """Return values with NaN as a number, for which the index has a string, among numbers."""
    if any(isinstance(value, str) and value != "nan" for value in values):
        return values
    return [math.nan if value == "nan" else value for value in values]


def _rows(folder: Path, function: str, where: str | None, filters: RunFilters) -> list[RunRow]:
    given = dict(read_options(RunFilters, filters, function))
    sort, limit, status = given.pop("sort", None), given.pop("limit", None), given.get("status")
    given["where"] = where
    given["status"] = (status,) if isinstance(status, str) else tuple(status or ())
    run_filter = RunFilter(**{name: value for name, value in given.items() if value is not None})
    rows = RunRegistry(folder).rows(limit, run_filter, sort)
    for row in rows:
        if row.problem:
            logger.warning("a run is left out: %s", row.problem)
    return [row for row in rows if not row.problem]


def _outcomes(folder: Path, rows: Sequence[RunRow]) -> Iterator[RunResult]:
    for row in rows:
        try:
            yield RunFolder(folder / row.run_id).outcome()
        except RunFolderError as e:  # it was changed meanwhile
            logger.warning("a run is left out: %s", e)


def _folder(runs_dir: Path | str | None) -> Path:
    return Path(runs_dir).expanduser() if runs_dir is not None else default_runs_dir()
