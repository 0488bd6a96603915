"""Makes strings of others fit to be printed: names, configs, results, errors, logs.

Such a string may hold an escape sequence, which a terminal obeys, or half a character, which
no stream takes. Whatever a command prints of one passes through here.
"""

from __future__ import annotations

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_LINE_ENDS = re.compile(r"\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")


def printable(string: str) -> str:
    """Return a string for one line; what isn't printable becomes an escape such as `\\x1b`.

    Examples:
        >>> printable("a\\tb")
        'a\\\\tb'
    """
    if string.isprintable():
        return string
    return "".join(c if c.isprintable() else _escape(c) for c in string)


def printable_lines(string: str) -> str:
    """Return a string of several lines, such as a log or a traceback, without escape sequences.

    Colours are left out, a progress bar's returns to the start of its line begin a new one, and
    the rest that isn't printable is escaped.

    Examples:
        >>> printable_lines("\\x1b[31m50%\\x1b[0m\\r100%")
        '50%\\n100%'
    """
    if string.isprintable():
        return string
    lines = _LINE_ENDS.sub("\n", _COLOURS.sub("", string))
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in lines)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
