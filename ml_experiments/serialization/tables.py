"""pandas tables as CSV that people can read, plus what it takes to rebuild them exactly."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ml_experiments.serialization.table_columns import column_from_cells, column_to_cells, inline
from ml_experiments.serialization.typed_json import as_key, from_json


def describe_table(table: Any) -> tuple[dict[str, Any], bytes]:
    """Return what rebuilds a DataFrame or Series, and its cells as CSV.

    Raises:
        Unportable: If a column, label or cell is of a kind that a string can't hold.
    """
    index, index_cells = _describe_index(table.index)
    columns = [table] if table.ndim == 1 else [table.iloc[:, i] for i in range(table.shape[1])]
    described = [column_to_cells(_title(column.name, "value"), column) for column in columns]
    description: dict[str, Any] = {"index": index, "columns": [column for _, column in described]}
    if table.ndim == 1:
        description["label"] = inline("name", table.name)
    else:
        labels, label_cells = _describe_index(table.columns)
        description["labels"] = {**labels, "cells": label_cells}
    if table.attrs:
        description["attrs"] = inline("attrs", table.attrs)
    titles = [column["name"] for column in (*index["levels"], *description["columns"])]
    rows = zip(*index_cells, *(cells for cells, _ in described), strict=True)
    stream = io.StringIO(newline="")
    csv.writer(stream).writerows([titles, *rows])
    return description, stream.getvalue().encode("utf-8", "surrogatepass")


def rebuild_table(description: Mapping[str, Any], content: bytes) -> Any:
    """Return the DataFrame or Series that `describe_table` described.

    Raises:
        ValueError: If the description and the CSV don't belong together.
    """
    width = len(description["index"]["levels"]) + len(description["columns"])
    rows = description["shape"][0]
    table_cells = _read_columns(content.decode("utf-8", "surrogatepass"), width, rows)
    depth = len(description["index"]["levels"])
    index = _rebuild_index(description["index"], table_cells[:depth], rows)
    columns = [
        column_from_cells(cells, column)
        for cells, column in zip(table_cells[depth:], description["columns"], strict=True)
    ]
    if len(description["shape"]) == 1:
        table: Any = columns[0].set_axis(index)
        table.name = as_key(from_json(description["label"]))
    else:
        table = pd.DataFrame({i: c.set_axis(index) for i, c in enumerate(columns)}, index=index)
        labels = description["labels"]
        table.columns = _rebuild_index(labels, labels["cells"], len(columns))
    table.attrs = from_json(description.get("attrs", {}))
    return table


def _describe_index(index: Any) -> tuple[dict[str, Any], list[list[str]]]:
    names = inline("index names", list(index.names))
    if isinstance(index, pd.RangeIndex):
        return {"range": [index.start, index.stop, index.step], "names": names, "levels": []}, []
    described = [
        column_to_cells(_title(name, f"index{i}"), index.get_level_values(i).to_series())
        for i, name in enumerate(index.names)
    ]
    description = {
        "names": names,
        "multi": isinstance(index, pd.MultiIndex),
        "levels": [level for _, level in described],
    }
    if getattr(index, "freqstr", None):
        description["freq"] = index.freqstr
    return description, [cells for cells, _ in described]


def _rebuild_index(
    description: Mapping[str, Any], level_cells: list[list[str]], length: int
) -> Any:
    names = [as_key(name) for name in from_json(description["names"])]
    if "range" in description:
        index: Any = pd.RangeIndex(*description["range"])
    else:
        levels = [
            _as_index(column_from_cells(cells, level))
            for cells, level in zip(level_cells, description["levels"], strict=True)
        ]
        index = pd.MultiIndex.from_arrays(levels) if description["multi"] else levels[0]
        if "freq" in description:
            index.freq = description["freq"]
    if len(index) != length:
        raise ValueError(f"an index of {len(index)} where there are {length}")
    index.names = names
    return index


def _as_index(values: Any) -> Any:
    if values.dtype == object:
        values = [as_key(value) for value in values]
        return pd.Index(values, dtype=object, tupleize_cols=False)
    return pd.Index(values.array)


def _read_columns(content: str, width: int, rows: int) -> list[list[str]]:
    previous = csv.field_size_limit(max(len(content), 1))  # a cell may be long
    try:
        lines = list(csv.reader(io.StringIO(content, newline="")))[1:]
    finally:
        csv.field_size_limit(previous)
    if width and (len(lines) != rows or any(len(line) != width for line in lines)):
        raise ValueError(f"the CSV doesn't have {rows} rows of {width} cells")
    return [[line[i] for line in lines] for i in range(width)]


def _title(label: Any, default: str) -> str:
    """Return a column's heading, which is for people only."""
    if label is None:
        return default
    return ".".join(map(str, label)) if isinstance(label, tuple) else str(label)
