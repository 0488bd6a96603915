"""One column of a pandas table as readable strings, from which it can be made again exactly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ml_experiments.errors import UnportableResultError
from ml_experiments.serialization.encoder import to_json
from ml_experiments.serialization.typed_json import Unportable, from_json

_NULLABLE = {"boolean", "Float32", "Float64"} | {
    f"{sign}Int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)
}


def column_to_cells(title: str, column: Any) -> tuple[list[str], dict[str, Any]]:
    """Return the cells of a Series as strings, and the description for `column_from_cells`.

    Raises:
        Unportable: If the column's dtype, or a cell, is of a kind that a string can't hold.
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _categories_to_cells(title, column)
    kind = _kind(title, column)
    description: dict[str, Any] = {"name": title, "dtype": str(dtype), "as": kind}
    if kind == "json":
        values = inline(f"column {title!r}", column.tolist())
        return [json.dumps(value, ensure_ascii=False) for value in values], description
    cells = _cells_of(kind, column)
    gone = column.isna().tolist()
    if any(gone):
        mark = _mark(cell for cell, g in zip(cells, gone, strict=True) if not g)
        cells = [mark if g else cell for cell, g in zip(cells, gone, strict=True)]
        description["missing"] = mark
        if dtype.kind == "O":
            description["none"] = column[gone].iloc[0] is None
    return cells, description


def column_from_cells(cells: list[str], description: Mapping[str, Any]) -> Any:
    """Return the Series that `column_to_cells` described.

    Raises:
        ValueError: If a cell is not of the column's dtype.
    """
    kind, dtype = description["as"], description["dtype"]
    if kind == "category":
        return _categories_from_cells(cells, description)
    if kind == "json":
        values = np.empty(len(cells), dtype=object)
        for row, cell in enumerate(cells):
            values[row] = from_json(json.loads(cell))
        return pd.Series(values, dtype=dtype)
    mark = description.get("missing")
    if kind == "moment":
        return pd.Series(np.array(_filled(cells, mark, "NaT"), dtype=dtype))
    if kind == "utc":
        unit = np.datetime_data(dtype.partition(",")[0] + "]")[0]
        moments = np.array(_filled(cells, mark, "NaT"), dtype=f"datetime64[{unit}]")
        return pd.Series(moments).dt.tz_localize("UTC").astype(dtype)
    if kind == "duration":
        ticks = [np.iinfo(np.int64).min if cell == mark else int(cell) for cell in cells]
        return pd.Series(np.array(ticks, dtype=np.int64).view(dtype))
    if kind == "text":
        missing = None if description.get("none") else np.nan
        strings = np.empty(len(cells), dtype=object)
        strings[:] = _filled(cells, mark, missing)
        return pd.Series(strings, dtype=dtype)
    numbers = [None if cell == mark else _number(cell, dtype) for cell in cells]
    if kind == "nullable":
        return pd.Series(pd.array(numbers, dtype=dtype))
    return pd.Series(np.array([np.nan if n is None else n for n in numbers], dtype=dtype))


def inline(what: str, value: Any) -> Any:
    """Return labels or cells as JSON.

    Raises:
        Unportable: If one of them is not plain data.
    """
    try:
        return to_json(value)
    except UnportableResultError as e:
        raise Unportable(f"{what}: {e.problems[0].removeprefix('results')}") from e


def _kind(title: str, column: Any) -> str:
    dtype = column.dtype
    if isinstance(dtype, pd.DatetimeTZDtype):
        return "utc"
    if isinstance(dtype, pd.StringDtype):
        return "text"
    if str(dtype) in _NULLABLE:
        return "nullable"
    if isinstance(dtype, np.dtype):
        if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
            return "number"
        if dtype.kind in "mM":
            return "moment" if dtype.kind == "M" else "duration"
        if dtype.kind == "O":
            return "text" if _is_text(column) else "json"
        if dtype == np.complex128:
            return "json"
    raise Unportable(f"column {title!r} is of dtype {dtype}; use .astype(str) on it")


def _is_text(column: Any) -> bool:
    gone = column.isna()
    missing = column[gone].tolist()
    # None and NaN both mean missing to pandas; a mixture is kept as JSON
    alike = all(m is None for m in missing) or all(isinstance(m, float) for m in missing)
    return alike and all(type(value) is str for value in column[~gone])


def _cells_of(kind: str, column: Any) -> list[str]:
    if kind == "utc":
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    if kind in ("utc", "moment"):
        return [str(cell) for cell in np.datetime_as_string(column.to_numpy())]
    if kind == "duration":
        return [str(ticks) for ticks in column.to_numpy().view(np.int64).tolist()]
    return [value if isinstance(value, str) else repr(value) for value in column.tolist()]


def _categories_to_cells(title: str, column: Any) -> tuple[list[str], dict[str, Any]]:
    categories, inner = column_to_cells(title, column.cat.categories.to_series())
    mark = _mark(categories)
    codes = column.cat.codes.tolist()
    description = {
        "name": title,
        "as": "category",
        "dtype": "category",
        "ordered": bool(column.cat.ordered),
        "missing": mark,
        "categories": categories,
        "category": inner,
    }
    return [categories[code] if code >= 0 else mark for code in codes], description


def _categories_from_cells(cells: list[str], description: Mapping[str, Any]) -> Any:
    names = description["categories"]
    codes = {name: code for code, name in enumerate(names)} | {description["missing"]: -1}
    categories = pd.Index(column_from_cells(names, description["category"]).array)
    return pd.Series(
        pd.Categorical.from_codes(
            [codes[cell] for cell in cells], categories=categories, ordered=description["ordered"]
        )
    )


def _number(cell: str, dtype: str) -> Any:
    if dtype.startswith("bool"):
        if cell not in ("True", "False"):
            raise ValueError(f"{cell!r} is not a bool")
        return cell == "True"
    return float(cell) if dtype.lower().startswith("float") else int(cell)


def _filled(cells: list[str], mark: str | None, missing: Any) -> list[Any]:
    return cells if mark is None else [missing if cell == mark else cell for cell in cells]


def _mark(cells: Any) -> str:
    """Return a string for missing cells that no cell has."""
    taken = set(cells)
    mark = ""
    while mark in taken:
        mark = f"<NA{len(mark)}>" if mark else "<NA>"
    return mark
