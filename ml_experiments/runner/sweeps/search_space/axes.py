"""One axis of a search space: a list of values, or an interval of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

_MAX_SHOWN = 8
_ROUNDING = 1e-9  # of a step, so that 0 to 1 in steps of 0.1 ends with 1


@dataclass(frozen=True)
class Choice:
    """Values in the order in which they were written.

    Attributes:
        name: The field of the config, with dots.
        values: Each as it stands after `name=` in an override.
    """

    name: str
    values: tuple[str, ...]

    @property
    def grid(self) -> Sequence[str]:
        """All values."""
        return self.values

    def describe(self) -> str:
        """Return the values, as many as a line has room for."""
        return _shortened(self.values)


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`, both included.

    Attributes:
        name: The field of the config, with dots.
        low: The smallest number.
        high: The largest number.
        step: The distance between two; None where there is any number between.
        is_log: Whether each order of magnitude is as likely as any other.
        is_int: Whether they are whole numbers.
    """

    name: str
    low: float
    high: float
    step: float | None = None
    is_log: bool = False
    is_int: bool = False

    @property
    def grid(self) -> Sequence[str] | None:
        """All numbers, made one by one; None if there is no end of them."""
        if self.is_log or self.step is None:
            return None
        return _Steps(self.low, self.step, self.is_int, self.size)

    @property
    def size(self) -> int:
        """How many numbers there are, where there is a step."""
        assert self.step is not None
        if self.is_int:
            return (int(self.high) - int(self.low)) // int(self.step) + 1
        return math.floor((self.high - self.low) / self.step + _ROUNDING) + 1

    def describe(self) -> str:
        """Return the numbers, as many as a line has room for, or the bounds."""
        if self.grid is not None:
            return _shortened(self.grid)
        kind = f"{'whole numbers ' if self.is_int else ''}from {self.low:g} to {self.high:g}"
        return f"{kind}, on a log scale" if self.is_log else kind


Axis = Choice | Interval


@dataclass(frozen=True)
class _Steps(Sequence[str]):
    low: float
    step: float
    is_int: bool
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(index)
        index %= self.size
        if self.is_int:
            return str(int(self.low) + index * int(self.step))
        # Decimal: 3 * 0.1 is 0.3
        return str(float(Decimal(repr(self.low)) + index * Decimal(repr(self.step))))


def _shortened(values: Sequence[str]) -> str:
    if len(values) <= _MAX_SHOWN:
        return ", ".join(values)
    first = ", ".join(values[: _MAX_SHOWN - 2])
    return f"{first}, …, {values[-1]}"
