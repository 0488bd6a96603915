"""A contact sheet: all pictures of a run on one, small, with labels."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

MAX_COUNT = 200
_MIN_SIDE, _MAX_SIDE = 128, 256
_COLUMNS, _MIN_COLUMNS = 8, 4
_GAP, _LINE, _TEXT_SIZE, _TITLE_SIZE = 12, 18, 14, 16
_LABEL_LINES = 2
_MAX_LINE = 400
_BACKGROUND, _INK, _FAINT = "#ffffff", "#1f2328", "#59636e"


@dataclass
class ContactSheet:
    """Collects pictures, reduced to the size that they are shown in.

    Attributes:
        row_length: How many pictures belong together, in a row of their own where that fits.
        left_out: How many pictures more than `MAX_COUNT` were added.
    """

    title: str
    row_length: int
    left_out: int = 0
    _cells: dict[int, tuple[Image.Image, str]] = field(default_factory=dict)

    def add(self, index: int, picture: Image.Image, label: str) -> None:
        """Take a picture in, unless the sheet is full of pictures that come before it.

        Args:
            index: Its place among all pictures.
            picture: The picture; its pixels are read only if it is taken in.
            label: What to write below it.
        """
        if len(self._cells) == MAX_COUNT:
            self.left_out += 1
            if index > (last := max(self._cells)):
                return
            del self._cells[last]
        self._cells[index] = (_resized(picture), label)

    def render(self) -> Image.Image:
        """Return the sheet as one picture.

        Raises:
            ValueError: If it is empty.
        """
        if not self._cells:
            raise ValueError("a contact sheet needs at least one picture")
        cells = [self._cells[index] for index in sorted(self._cells)]
        cell_width = max(picture.width for picture, _ in cells)
        cell_height = max(picture.height for picture, _ in cells)
        label_height = _LABEL_LINES * _LINE + _GAP // 2
        columns = self._columns()
        top = 2 * _GAP + _TITLE_SIZE
        rows = math.ceil(len(cells) / columns)
        sheet = Image.new(
            "RGB",
            (
                _GAP + columns * (cell_width + _GAP),
                top + rows * (cell_height + label_height + _GAP),
            ),
            _BACKGROUND,
        )
        pen = ImageDraw.Draw(sheet)
        _write_line(
            pen, (_GAP, _GAP), self._full_title(), sheet.width - 2 * _GAP, _TITLE_SIZE, _INK
        )
        for position, (picture, label) in enumerate(cells):
            x = _GAP + position % columns * (cell_width + _GAP)
            y = top + position // columns * (cell_height + label_height + _GAP)
            sheet.paste(picture, (x, y))
            _write_label(pen, (x, y + cell_height + 4), label, cell_width)
        return sheet

    def _columns(self) -> int:
        if 2 <= self.row_length <= _COLUMNS and self.row_length < len(self._cells):
            return self.row_length
        count = len(self._cells)
        square = math.ceil(math.sqrt(count))
        return min(_COLUMNS, count, max(square, _MIN_COLUMNS))

    def _full_title(self) -> str:
        if not self.left_out:
            return self.title
        return f"the first {len(self._cells)} of {len(self._cells) + self.left_out} · {self.title}"


def _resized(picture: Image.Image) -> Image.Image:
    """Return a copy that is large enough to see and small enough to lay out."""
    longest = max(picture.size)
    if longest < _MIN_SIDE:  # whole pixels, so that a small picture isn't blurred
        factor = math.ceil(_MIN_SIDE / longest)
        size = (picture.width * factor, picture.height * factor)
        return picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    small = picture.convert("RGB")
    small.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
    return small


def _write_label(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    font = _font(_TEXT_SIZE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > _LABEL_LINES:
        lines[_LABEL_LINES - 1] = " ".join(lines[_LABEL_LINES - 1 :])
    for number, line in enumerate(lines[:_LABEL_LINES]):
        x, y = place[0], place[1] + number * _LINE
        _write_line(pen, (x, y), line, width, _TEXT_SIZE, _FAINT)


def _write_line(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int, size: int, ink: str
) -> None:
    """Write a line of text, cut to a width in pixels."""
    text = text[:_MAX_LINE]
    font = _font(size)
    shown = text
    while shown and font.getlength(shown) > width:
        text = text[:-1]
        shown = f"{text.rstrip()}…"
        if not text:
            return
    pen.text(place, shown, fill=ink, font=font)


@functools.cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)  # reads the whole font anew on each call
