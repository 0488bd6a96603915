"""A search space: its axes, its points, and how it is written in a file or in Python."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.config.files import read_config_file
from ml_experiments.config.overrides import parse_value
from ml_experiments.config.scalars import Unquoted, is_number_list, resolve_scalars
from ml_experiments.errors import ConfigError, suggest
from ml_experiments.runner.sweeps.search_space.axes import Axis, Choice, Interval
from ml_experiments.runner.sweeps.search_space.forms import (
    FORMS,
    build_form,
    choice,
    meaning_of,
    parse_axis,
    parse_form,
    read_values,
)
from ml_experiments.serialization.plain_values import to_python_scalar

# an option of a Hydra app -> what does the same here
_OF_HYDRA = {
    "n_trials": "--trials N",
    "n_jobs": "--parallel N",
    "direction": "--maximize or --minimize results.NAME",
    "sampler": "--sampler tpe",
    "launcher": "--parallel N, or --gpu TYPE for Modal",
    "dir": "the settings (`runs_dir`)",
}


@dataclass(frozen=True)
class Space:
    """Axes, each of which varies one field of a config; a point is a list of overrides."""

    axes: tuple[Axis, ...]

    @property
    def count(self) -> int | None:
        """How many points there are; None if there is no end of them."""
        sizes = [len(axis.grid) if axis.grid is not None else None for axis in self.axes]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    @property
    def endless(self) -> tuple[Interval, ...]:
        """The axes that have no end of values."""
        return tuple(a for a in self.axes if isinstance(a, Interval) and a.grid is None)

    def point(self, index: int) -> tuple[str, ...]:
        """Return one point of the grid; the last axis varies fastest."""
        overrides: list[str] = []
        for axis in reversed(self.axes):
            assert axis.grid is not None
            index, place = divmod(index, len(axis.grid))
            overrides.append(f"{axis.name}={axis.grid[place]}")
        return tuple(reversed(overrides))

    def points(self) -> Iterator[tuple[str, ...]]:
        """Yield all points of the grid; none is kept."""
        assert self.count is not None
        return map(self.point, range(self.count))

    def extended(self, axes: Sequence[Axis], *, is_sampled: bool) -> Space:
        """Return the space with more values on some axes; all of its points stay.

        Raises:
            ConfigError: If an axis is new, or Optuna could not go on with it.
        """
        known = {axis.name: axis for axis in self.axes}
        changed = dict(known)
        for axis in axes:
            old = known.get(axis.name)
            if old is None:
                raise ConfigError(
                    f"the sweep has no axis {axis.name}{suggest(axis.name, known)}; what the "
                    "points have had in common can't be varied later: start a new sweep"
                )
            changed[axis.name] = _widened(old, axis) if is_sampled else _joined(old, axis)
        return Space(tuple(changed.values()))

    def to_dict(self) -> list[dict[str, Any]]:
        """Return the axes as JSON."""
        return [asdict(axis) for axis in self.axes]

    @classmethod
    def from_dict(cls, data: Sequence[Mapping[str, Any]]) -> Space:
        """Read back what `to_dict` has returned.

        Raises:
            ValueError: If it is something else, as in a file that was edited.
        """
        try:
            axes = tuple(
                Choice(axis["name"], tuple(axis["values"]))
                if "values" in axis
                else Interval(**axis)
                for axis in data
            )
            sizes = [len(axis.grid) for axis in axes if axis.grid is not None]
        except (ArithmeticError, KeyError, TypeError) as e:
            raise ValueError(f"an axis is not valid: {e}") from e
        if not axes or min(sizes, default=1) < 1:
            raise ValueError("an axis has no values, or there is none")
        return cls(axes)


def _joined(old: Axis, new: Axis) -> Axis:
    """Return an axis of a grid with the values of both."""
    assert old.grid is not None
    if new.grid is None:
        raise ConfigError(f"{new.name} ({new.describe()}) has no end of values; list them")
    joined: dict[str, str] = {}
    for value in (*old.grid, *new.grid):
        joined.setdefault(meaning_of(old.name, value), value)
    return Choice(old.name, tuple(joined.values()))


def _widened(old: Axis, new: Axis) -> Axis:
    """Return an interval that contains the old one; Optuna takes no other change."""
    if isinstance(old, Choice) or isinstance(new, Choice):
        raise ConfigError(
            f"the values of {old.name} can't change while a sampler chooses among them; start a "
            "new sweep"
        )
    same = (old.step, old.is_log, old.is_int) == (new.step, new.is_log, new.is_int)
    if not same or new.low > old.low or new.high < old.high:
        raise ConfigError(
            f"{new.name} ({new.describe()}) does not contain what it was ({old.describe()}), on "
            "the same scale; write a wider interval of the same form"
        )
    return new


def point_key(overrides: Sequence[str]) -> str:
    """Return what a point is recognized by: its overrides, as a shell takes them."""
    return shlex.join(overrides)


def read_space(
    overrides: Sequence[str], file: Path | None = None, data: Mapping[str, Any] | None = None
) -> Space:
    """Return the space of a file, of Python data and of the command line, which win in this order.

    Raises:
        ConfigError: Naming every axis that can't be understood.
    """
    if isinstance(overrides, str):  # a sequence of letters
        raise ConfigError(f"{overrides!r} is a string; write {overrides.split()!r}")
    problems: list[str] = []
    axes: list[Axis] = []
    for given in (None if file is None else read_config_file(file), data):
        axes += _axes_of(given or {}, "", problems)
    seen: dict[str, str] = {}
    for override in overrides:
        name, equals, written = override.partition("=")
        try:
            if name in seen:
                raise ConfigError(
                    f"{name} is there twice, as {seen[name]} and {override}; write all values "
                    f"after one {name}="
                )
            seen[name] = override
            if not equals:
                raise ConfigError(
                    f"{override!r} is not an axis; write it as name=value,value or "
                    f"{override}={next(iter(FORMS))}(…)"
                )
            axes.append(parse_axis(_checked_name(name), written))
        except ConfigError as e:
            problems.append(str(e))
    if problems:
        raise ConfigError("the search space is not valid:", tuple(problems))
    if not axes:
        raise ConfigError(
            "the search space is empty: there is nothing to vary; write lr=1e-4,3e-4 seed=range:5"
        )
    return Space(tuple(_later_ones(axes)))


def _later_ones(axes: Sequence[Axis]) -> list[Axis]:
    """Return the axes that no later one replaces, be it `opt={…}` after `opt.lr=…`."""
    kept: dict[str, Axis] = {}
    for axis in axes:
        for name in [name for name in kept if name.startswith(f"{axis.name}.")]:
            del kept[name]
        kept[axis.name] = axis
    return list(kept.values())


def overrides_in(data: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a config as overrides."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        is_plain = isinstance(value, Mapping) and value and not any("." in k for k in value)
        if is_plain:
            yield from overrides_in(value, f"{name}.")
        else:
            yield f"{name}={_written(name, value)}"


def _checked_name(name: str) -> str:
    name = name.strip()
    first, _, rest = name.replace("/", ".").partition(".")
    if first == "hydra":
        word = next((word for word in _OF_HYDRA if word in rest), None)
        meant = f"; here it is {_OF_HYDRA[word]}" if word else ""
        raise ConfigError(f"{name} is an option of Hydra's, not a field of the config{meant}")
    if name.startswith(("+", "~")):
        raise ConfigError(f"{name} is Hydra's; write {name.lstrip('+~')}=… for a field")
    return name


def _axes_of(data: Mapping[str, Any], prefix: str, problems: list[str]) -> Iterator[Axis]:
    """Yield the axes in a mapping: of names to values, forms, or further mappings."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        try:
            if isinstance(value, Mapping) and not (len(value) == 1 and next(iter(value)) in FORMS):
                yield from _axes_of(value, f"{name}.", problems)
            else:
                yield _axis_of(name, value)
        except ConfigError as e:
            problems.append(str(e))


def _axis_of(name: str, value: Any) -> Axis:
    if isinstance(value, Mapping):
        ((form, arguments),) = value.items()
        several = list(arguments) if isinstance(arguments, list | tuple) else [arguments]
        if form == "file":
            return choice(name, read_values(Path(str(arguments))), f"file:{arguments}")
        written = [_written(name, argument) for argument in several]
        shown = f"{form}({','.join(written)})"
        is_choice = form == "choice"
        return choice(name, written, shown) if is_choice else build_form(name, form, written, shown)
    if isinstance(value, range) and value.step > 0:
        arguments = [str(part) for part in (value.start, value.stop, value.step)]
        return build_form(name, "range", arguments, f"range({','.join(arguments)})")
    if isinstance(value, list | tuple | range):
        written = [_written(name, item) for item in value]
        return choice(name, written, f"[{', '.join(written)}]")
    if isinstance(value, str):
        if is_number_list(value):
            return parse_axis(name, value)
        form_axis = parse_form(name, value)
        if form_axis is not None:
            return form_axis
    return Choice(name, (_written(name, value),))


def _written(name: str, value: Any) -> str:
    """Return a value as it is written after `name=` in an override."""
    value = to_python_scalar(value)
    if isinstance(value, Unquoted):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else f"{'-' if value < 0 else ''}.inf"
    if isinstance(value, str):
        try:
            parsed = parse_value(value, name)
        except ConfigError:
            parsed = None
        is_same = type(parsed) is str and parsed == value and value == value.strip()
        return value if is_same and value else json.dumps(value, ensure_ascii=False)
    try:
        return json.dumps(resolve_scalars(value)[0], ensure_ascii=False)
    except (TypeError, ValueError) as e:
        raise ConfigError(
            f"{name}: {value!r:.60} is not JSON; write a number, a string, true or false, null, "
            "a list or a dict"
        ) from e
