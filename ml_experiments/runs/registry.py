"""Finds and lists the runs below one folder."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.errors import RunNotFoundError, suggest
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter, check_columns, select
from ml_experiments.runs.index.index import Progress, RunIndex
from ml_experiments.runs.index.names import is_run_folder
from ml_experiments.runs.index.rows import RunRow
from ml_experiments.runs.index.tables import Selection
from ml_experiments.settings import index_dir

_MAX_SUGGESTED = 100
_ALL = RunFilter()


class RunRegistry:
    """Lists and finds the runs below one folder; what it returns is what their folders say.

    Args:
        runs_dir: The folder.
        on_progress: Is called, with how many of how many, while many folders are read.
    """

    def __init__(self, runs_dir: Path, on_progress: Progress = lambda _done, _total: None) -> None:
        self.runs_dir = runs_dir.absolute()
        self._index = RunIndex(self.runs_dir, index_dir(), on_progress)

    def count(self, run_filter: RunFilter = _ALL) -> int:
        """Return how many runs there are.

        Raises:
            ConfigError: If the filter can't be understood.
        """
        return self._index.count(select(run_filter, None, self._index.paths))

    def explain_none(self, run_filter: RunFilter) -> str:
        """Return which part of a filter no run fits at all, and what comes near; else nothing."""
        for column in ("experiment", "name", "gpu", "backend", "sweep"):
            given = getattr(run_filter, column)
            if given is not None and not self.count(RunFilter(**{column: given})):
                known = self._index.values(column)
                short = [name.rpartition(":")[2].rpartition(".")[2] for name in known]
                near = suggest(given, (*known, *(short if column == "experiment" else ())))
                what = "GPU" if column == "gpu" else column
                return f"no run has the {what} {given!r}{near}"
        for tag, value in run_filter.tags.items():
            if not self.count(RunFilter(tags={tag: value})):
                keys = [p[5:] for p in self._index.paths() if p.startswith("tags.")]
                return f"no run has the tag {tag}={value}" + (
                    "" if tag in keys else suggest(tag, keys)
                )
        return ""

    def rows(
        self,
        limit: int | None = None,
        run_filter: RunFilter = _ALL,
        sort: str | None = None,
        columns: tuple[str, ...] = (),
    ) -> list[RunRow]:
        """Return runs, the newest first; a folder that can't be read has a `problem`.

        Args:
            limit: How many; None for all.
            run_filter: Which.
            sort: Another order, by a column or a value: see `select`.
            columns: What is going to be shown; it is checked.

        Raises:
            ConfigError: If the filter can't be understood, or no run has such a column.
            RunFolderError: If the folder is not readable.
        """
        check_columns(columns, self._index.paths)
        return self._index.rows(select(run_filter, sort, self._index.paths), limit)

    def find(self, reference: str) -> RunFolder:
        """Return the run folder of an id, the beginning of one, a name, or `last`.

        Raises:
            RunNotFoundError: If none or several match.
        """
        if "/" not in reference and is_run_folder(self.runs_dir / reference):
            return RunFolder(self.runs_dir / reference)
        prefix = "" if reference == "last" else reference
        names: list[str] = []
        for is_listed in (False, True):
            names = self._index.names(prefix, 4, is_listed=is_listed) if reference else []
            if names and is_run_folder(self.runs_dir / names[0]):
                break
        if names and (len(names) == 1 or reference == "last"):
            return RunFolder(self.runs_dir / names[0])
        if names:
            count = len(self._index.names(prefix))
            raise RunNotFoundError(
                f"{reference!r} matches {count} runs, among them {', '.join(names[:3])}; "
                "write more of it"
            )
        named = self._index.rows(Selection("runs.name = ?", (reference,), needs_all=True), 4)
        if len(named) == 1:
            return RunFolder(self.runs_dir / named[0].run_id)
        if named:
            among = ", ".join(row.run_id for row in named[:3])
            raise RunNotFoundError(
                f"several runs are named {reference!r}, among them {among}; write an id"
            )
        newest = self._index.names("", _MAX_SUGGESTED)
        if not newest:
            raise RunNotFoundError(f"there are no runs in {self.runs_dir}")
        raise RunNotFoundError(
            f"no run in {self.runs_dir} has this name, or an id that starts with {reference!r}"
            f"{suggest(reference, ('last', *newest))}; `ml-experiments runs list` shows them"
        )
