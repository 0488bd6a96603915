"""The one printer of tables: cut to the width of a terminal, whole in a pipe or a file."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
from rich.cells import cell_len, set_cell_size

from ml_experiments.runner.display.printable import printable

_GAP = "  "
_MIN_WIDTH = 8


@dataclass(frozen=True)
class Column:
    """A column; `is_cut` lets its cells give way where a terminal is too narrow, as names may."""

    heading: str
    is_right: bool = False
    is_cut: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell with a colour."""

    content: str
    colour: str


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> None:
    """Print rows below their headings; without a row of headings where all are empty."""
    headings = [printable(column.heading) for column in columns]
    shown = [[printable(c.content if isinstance(c, Cell) else c) for c in row] for row in rows]
    widths = _fit(columns, [[cell_len(s) for s in c] for c in zip(headings, *shown, strict=True)])
    if any(headings):
        click.secho(_line(headings, columns, widths), bold=True)
    for row, strings in zip(rows, shown, strict=True):
        colours = [cell.colour if isinstance(cell, Cell) else None for cell in row]
        click.echo(_line(strings, columns, widths, colours))


def is_terminal() -> bool:
    """Return whether what is printed goes to a terminal, whose width counts."""
    return sys.stdout.isatty()


def cut(string: str, width: int) -> str:
    """Return as much of a string as so many cells of a terminal hold."""
    return string if cell_len(string) <= width else set_cell_size(string, width - 1).rstrip() + "…"


def _fit(columns: Sequence[Column], lengths: Sequence[Sequence[int]]) -> list[int]:
    """Return widths that a terminal has room for, as far as cutting the widest makes them so.

    Args:
        columns: The columns, each of which may have its heading cut.
        lengths: Of each column, the lengths of its heading and of its cells.
    """
    widths = [max(column) for column in lengths]
    if not is_terminal():
        return widths
    least = [
        max(_MIN_WIDTH, 0 if column.is_cut else max(cells, default=0))
        for column, (_, *cells) in zip(columns, lengths, strict=True)
    ]
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - shutil.get_terminal_size().columns
    while excess > 0:
        cuttable = [i for i, width in enumerate(widths) if width > least[i]]
        if not cuttable:
            break
        widest = max(cuttable, key=lambda i: widths[i])
        widths[widest] -= 1
        excess -= 1
    return widths


def _line(
    strings: Sequence[str],
    columns: Sequence[Column],
    widths: Sequence[int],
    colours: Sequence[str | None] | None = None,
) -> str:
    cells = []
    for index, (string, column, width) in enumerate(zip(strings, columns, widths, strict=True)):
        string = cut(string, width)
        padding = " " * (width - cell_len(string))
        is_last = index == len(columns) - 1
        styled = click.style(string, fg=colours[index]) if colours and colours[index] else string
        cells.append(padding + styled if column.is_right else styled + ("" if is_last else padding))
    return _GAP.join(cells).rstrip()
