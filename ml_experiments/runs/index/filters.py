"""Which runs are asked for, and in which order: filters as a selection of the index."""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ml_experiments.errors import ConfigError, suggest
from ml_experiments.runs.index.rows import COLUMNS, suggest_column
from ml_experiments.runs.index.tables import Selection
from ml_experiments.runs.index.where import Condition, parse_where, value_condition
from ml_experiments.runs.result import RunStatus

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class RunFilter:
    """Which runs: those that every given part holds for.

    Attributes:
        status: One of these.
        experiment: A pattern such as `*.Train`; the last part of the name is enough.
        name: A pattern such as `base*`.
        tags: Each with this value, which may be a pattern.
        gpu: A pattern for what was asked for, such as `h100*`.
        backend: Its name.
        sweep: A pattern for the tag `sweep`.
        since: A date such as `2026-11-25`, in local time, or an age such as `7d`.
        until: The same.
        where: A condition on any of them and on config, results and tags.
    """

    status: tuple[str, ...] = ()
    experiment: str | None = None
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    gpu: str | None = None
    backend: str | None = None
    sweep: str | None = None
    since: str | None = None
    until: str | None = None
    where: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether it holds for every run."""
        return self == RunFilter()


def select(
    run_filter: RunFilter, sort: str | None, paths: Callable[[], Iterable[str]]
) -> Selection:
    """Return the selection of a filter.

    Args:
        run_filter: Which runs.
        sort: A column, or a path such as `results.accuracy`; `-` before it puts the largest first.
            By default, the newest runs are first.
        paths: Returns the paths of all values that runs have.

    Raises:
        ConfigError: If a part can't be understood; the message says what can.
    """
    condition = Condition("1")
    for part in _conditions(run_filter, paths):
        condition = condition & part
    selection = Selection(
        condition.sql,
        condition.parameters,
        needs_all=sort is not None or not run_filter.is_empty,
    )
    if sort is None:
        return selection
    name = sort.removeprefix("-")
    direction = "DESC" if sort.startswith("-") else "ASC"
    if name in COLUMNS:
        order = f"runs.{name} IS NULL, runs.{name} {direction}, {selection.order}"
        return dataclasses.replace(selection, order=order)
    if name not in tuple(paths()):
        raise _unknown_column(name, paths)
    return dataclasses.replace(selection, sorted_by=name, direction=direction)


def check_columns(names: Iterable[str], paths: Callable[[], Iterable[str]]) -> None:
    """Refuse columns that don't exist.

    Raises:
        ConfigError: If one is neither a column nor the path of a value.
    """
    for name in names:
        if name not in COLUMNS and name not in tuple(paths()):
            raise _unknown_column(name, paths)


def _conditions(run_filter: RunFilter, paths: Callable[[], Iterable[str]]) -> Iterable[Condition]:
    if run_filter.status:
        known = [str(status) for status in RunStatus]
        for status in run_filter.status:
            if status not in known:
                raise ConfigError(
                    f"{status!r} is not a status{suggest(status, known)}; there are "
                    f"{', '.join(known)}"
                )
        marks = ", ".join("?" * len(run_filter.status))
        yield Condition(f"coalesce(runs.status IN ({marks}), 0)", run_filter.status)
    if run_filter.experiment is not None:
        pattern = run_filter.experiment
        sql = " OR ".join("runs.experiment GLOB ?" for _ in range(3))
        yield Condition(f"coalesce({sql}, 0)", (pattern, f"*.{pattern}", f"*:{pattern}"))
    for column in ("name", "gpu", "backend", "sweep"):
        pattern = getattr(run_filter, column)
        if pattern is not None:
            sql = f"coalesce(lower(runs.{column}) GLOB ?, 0)"
            yield Condition(sql, (pattern.lower(),))
    for tag, value in run_filter.tags.items():
        yield value_condition(f"tags.{tag}", "value GLOB ?", value)
    since = None if run_filter.since is None else parse_moment(run_filter.since)
    until = None if run_filter.until is None else parse_moment(run_filter.until)
    if since is not None and until is not None and since >= until:
        raise ConfigError(
            f"no run is since {run_filter.since!r} and until {run_filter.until!r}: the second is "
            "earlier"
        )
    if since is not None:
        yield Condition("coalesce(runs.created_at >= ?, 0)", (since,))
    if until is not None:
        yield Condition("coalesce(runs.created_at < ?, 0)", (until,))
    if run_filter.where is not None:
        yield parse_where(run_filter.where, paths)


def _unknown_column(name: str, paths: Callable[[], Iterable[str]]) -> ConfigError:
    nearest = suggest_column(name, paths())
    there = (
        f"; there are {', '.join(COLUMNS)}, and the values of config, results and tags, such as "
    )
    return ConfigError(f"no run has {name!r}{nearest or f'{there}config.lr'}")


def parse_moment(given: str) -> str:
    """Return a date or an age, such as `7d`, as records write a moment.

    Raises:
        ConfigError: If it is neither a date nor an age.
    """
    now = datetime.datetime.now(datetime.UTC)
    age = _AGE.fullmatch(given.strip().lower())
    try:
        if age is not None:
            moment = now - datetime.timedelta(seconds=float(age[1]) * _UNITS_S[age[2]])
        else:
            moment = datetime.datetime.fromisoformat(given.strip()).astimezone(datetime.UTC)
    except (ValueError, OverflowError) as e:
        raise ConfigError(
            f"{given!r} is not a date; write 2026-11-25, 2026-11-25T14:00, or an age such as 7d"
        ) from e
    return moment.isoformat(timespec="milliseconds")
