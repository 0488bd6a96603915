"""Parameters of tests that are values of torch, which not every version of Python has."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")


def with_torch(columns: int, cases: Callable[[Any], list[Any]]) -> list[Any]:
    """Return the cases, each with so many columns; without torch, one that is skipped."""
    if HAS_TORCH:
        return cases(importlib.import_module("torch"))
    return [pytest.param(*[None] * columns, marks=needs_torch, id="torch")]
