"""The end of a program's output as a terminal shows it: rows that may still change."""

from __future__ import annotations

import re

_ESCAPE = (
    r"\x1b\[(?P<parameters>[0-?]*)[ -/]*(?P<command>[@-~])"  # a colour, a move, …
    r"|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)"  # a title, a link
    r"|\x1b[ -/]*[0-~]?"
)
_TOKEN = re.compile(rf"{_ESCAPE}|(?P<text>[^\x00-\x08\x0a-\x1f\x7f-\x9f]+)|.", re.DOTALL)
_UNFINISHED_ESCAPE = re.compile(
    r"\x1b(?:\[[0-?]{0,80}[ -/]{0,9}|\][^\x07\x1b\n]{0,2000}\x1b?)?\Z", re.DOTALL
)
_UP = re.compile(r"\x1b\[(\d{0,2})[AF]")
_RESET = "\x1b[0m"
_MAX_STYLE = 200
_MAX_ESCAPE = 2100


class TerminalRows:
    r"""Takes a program's output a piece at a time, and finds which lines don't change any more.

    What follows a carriage return replaces its row. Where a program moves the cursor up, as
    nested progress bars do, that many rows stay unfinished. Colours are kept; other escape
    sequences and control characters have no effect beyond the rows and are left out.

    Args:
        colours: Whether to keep colours.

    Examples:
        >>> rows = TerminalRows(colours=False)
        >>> rows.feed("loading\n 10%\r 20%")
        ['loading']
        >>> rows.unfinished
        [' 20%']
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours
        self._held = ""  # the beginning of an escape sequence
        self._rows = [""]
        self._at = 0  # the cursor's row
        self._starts_anew = False
        self._style = ""  # the colours that are switched on
        self._rows_above = 0  # how far up the program moves the cursor
        self._only_grows = True

    @property
    def unfinished(self) -> list[str]:
        """The rows that may change, without blank ones at the end."""
        rows = list(self._rows)
        while rows and not rows[-1].strip():
            rows.pop()
        return rows

    @property
    def growing(self) -> str:
        """The unfinished line, if text was only added to it so far; else an empty string."""
        return self._rows[0] if self._only_grows and len(self._rows) == 1 else ""

    def feed(self, string: str) -> list[str]:
        """Take the next piece of output; return the lines that are finished by it."""
        string = self._held + string
        escape = _UNFINISHED_ESCAPE.search(string, max(0, len(string) - _MAX_ESCAPE))
        self._held = escape[0] if escape else ""
        string = string.removesuffix(self._held)
        ups = (int(up or 1) for up in _UP.findall(string))
        self._rows_above = max(self._rows_above, *ups, 0)
        finished: list[str] = []
        for token in _TOKEN.finditer(string):
            if token["command"]:
                self._obey(token["command"], token["parameters"], token[0])
            elif token[0] == "\n":
                self._next_row(finished)
            elif token[0] == "\r":
                self._starts_anew, self._only_grows = True, False
            elif token[0] == "\b":
                row, self._only_grows = self._rows[self._at], False
                if not row.endswith("m") or "\x1b" not in row[-20:]:
                    self._rows[self._at] = row[:-1]
            elif token["text"]:
                self._put(token["text"])
        return finished

    def end(self) -> list[str]:
        """Return the rows that are left, as lines."""
        return [_without_open_style(row) for row in self.unfinished]

    def _put(self, string: str) -> None:
        row = self._rows[self._at]
        if self._starts_anew or not row:
            row = self._style
        self._rows[self._at] = row + string
        self._starts_anew = False

    def _next_row(self, finished: list[str]) -> None:
        self._at += 1
        self._starts_anew = self._at < len(self._rows)
        if self._starts_anew:
            return
        self._rows.append("")
        self._only_grows = True
        if self._at > self._rows_above:
            finished.append(_without_open_style(self._rows.pop(0)))
            self._at -= 1

    def _obey(self, command: str, parameters: str, sequence: str) -> None:
        row = self._rows[self._at]
        if command == "m" and self._colours:
            if row and not self._starts_anew:
                self._rows[self._at] = row + sequence
            is_reset = parameters.strip("0;") == "" or len(self._style) > _MAX_STYLE
            self._style = "" if is_reset else self._style + sequence
        elif command in "AF":
            self._at -= int(parameters) if parameters.isdecimal() else 1
            while self._at < 0:
                self._rows.insert(0, "")
                self._at += 1
            self._starts_anew = True
        elif command == "G":
            self._starts_anew, self._only_grows = True, False
        elif command in "JK" and (self._starts_anew or parameters == "2"):
            self._rows[self._at], self._only_grows = "", False


def _without_open_style(row: str) -> str:
    return row + _RESET if "\x1b" in row and not row.endswith(_RESET) else row
