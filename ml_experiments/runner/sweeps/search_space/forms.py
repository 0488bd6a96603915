"""How an axis is written: `1e-4,3e-4`, `log:1e-5:1e-2`, `range(5)`, `file:prompts.txt`.

Each form has a way of writing that no shell takes apart, and a twin with parentheses, in quotes.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_experiments.config.overrides import parse_override, parse_value
from ml_experiments.config.scalars import parse_scalar, resolve_scalars
from ml_experiments.errors import ConfigError
from ml_experiments.runner.sweeps.search_space.axes import Axis, Choice, Interval

FORMS = {
    "choice": "a,b,c or 'choice(a,b,c)'",
    "range": "range:5 (0 to 4), range:1:5 (1 to 4), range:0:10:2 or 'range(5)'",
    "int": "int:1:64 (64 included), int:0:64:8 or 'int(1,64)'",
    "uniform": "uniform:0:1, uniform:0:1:0.1 or 'uniform(0,1)'",
    "log": "log:1e-5:1e-2 or 'log(1e-5,1e-2)'",
    "logint": "logint:1:1024 or 'logint(1,1024)'",
    "file": "file:prompts.txt, one value a line",
}
# what other tools call them -> the form here
_ELSEWHERE = {
    "loguniform": "log",
    "log_uniform": "log",
    "log_uniform_values": "log",
    "qloguniform": "log",
    "quniform": "uniform",
    "q_uniform": "uniform",
    "randint": "range",
    "qrandint": "range",
    "int_uniform": "int",
    "grid_search": "choice",
    "values": "choice",
    "linspace": "uniform",
    "logspace": "log",
    "sort": "choice",
    "shuffle": "choice",
    "glob": "choice",
}
_WITH_PARENTHESES = re.compile(r"\s*([A-Za-z_]+)\((.*)\)\s*", re.DOTALL)
_WITH_COLONS = re.compile(r"\s*([A-Za-z_]+):(.*)", re.DOTALL)
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_MIN_SIMILARITY = 0.6  # lgo and log
_MAX_NUMBER = 1e300  # the distance between two such numbers is one, too
_MAX_INT = 2**63 - 1  # numpy's, with which samplers count


def parse_axis(name: str, written: str) -> Axis:
    """Return what stands after `name=` on the command line as an axis.

    Raises:
        ConfigError: If it is written in no form, or has no values.
    """
    parse_override(f"{name}=")  # the name is one of a field
    found = parse_form(name, written)
    if found is not None:
        return found
    return choice(name, split_values(name, written), written)


def parse_form(name: str, written: str) -> Axis | None:
    """Return the axis that a form means; None if a string is none.

    Raises:
        ConfigError: If it looks like a form and isn't one.
    """
    parentheses, colons = _WITH_PARENTHESES.fullmatch(written), _WITH_COLONS.fullmatch(written)
    match = parentheses or colons
    if match is None or (parentheses and not _is_one_call(written)):
        return None
    form, inner = match[1], match[2]
    if parentheses and form in ("interval", "tag"):  # Hydra's
        return _of_hydra(name, written)
    if form not in FORMS:
        _refuse_unknown(name, written, form, inner)
        return None
    if form == "file":
        return choice(name, read_values(Path(inner.strip())), written)
    if form == "choice":
        return choice(name, split_values(name, inner) if inner.strip() else (), written)
    arguments = inner.split(",") if parentheses else inner.split(":")
    return build_form(name, form, arguments, written)


def build_form(name: str, form: str, arguments: Sequence[str], written: str) -> Axis:
    """Return the interval that a form other than `choice` and `file` means."""
    where = f"{name}={written}"
    numbers = [_number(argument, where, form) for argument in arguments]
    is_int = form in ("range", "int", "logint")
    if is_int:
        fractions = [number for number in numbers if number != int(number)]
        if fractions:
            raise ConfigError(
                f"{where}: {fractions[0]:g} is not a whole number; for others write "
                f"{FORMS['uniform']}"
            )
        numbers = [int(number) for number in numbers]
    largest = _MAX_INT if is_int else _MAX_NUMBER
    if any(abs(number) > largest for number in numbers):
        raise ConfigError(f"{where}: the largest number there may be is {largest:.2g}")
    if form == "range" and len(numbers) == 1:
        numbers = [0, *numbers]
    allowed = (2,) if form in ("log", "logint") else (2, 3)
    if len(numbers) not in allowed:
        raise ConfigError(f"{where} has {len(arguments)} numbers; write {FORMS[form]}")
    low, high = numbers[:2]
    step = numbers[2] if len(numbers) == 3 else (1 if is_int and form != "logint" else None)
    if step is not None and step <= 0:
        raise ConfigError(f"{where}: the step {step:g} must be above 0; write {FORMS[form]}")
    if form == "range":
        high = low + (math.ceil((high - low) / (step or 1)) - 1) * (step or 1)
        if high < low:
            raise ConfigError(f"{where} has no values; write {FORMS[form]}")
    if high < low:
        raise ConfigError(f"{where}: {high:g} is below {low:g}; write the smaller number first")
    is_log = form in ("log", "logint")
    if is_log and low <= 0:
        raise ConfigError(f"{where}: a log scale begins above 0, not at {low:g}")
    if high == low and (is_log or step is None):
        raise ConfigError(f"{where} has one value only; write {name}={low:g}")
    if step is not None and (high - low) / step >= sys.maxsize:
        raise ConfigError(f"{where} has too many values to count; write a larger step")
    axis = Interval(name, low, high, step, is_log, is_int)
    if step is not None:  # what no step reaches is left out
        last = low + (axis.size - 1) * step
        axis = Interval(name, low, min(last, high), step, is_log, is_int)
    return axis


def choice(name: str, values: Sequence[str], written: str) -> Choice:
    """Return an axis of values, each as it stands after `name=`.

    Raises:
        ConfigError: If there are none, one is empty or not readable, or one is there twice.
    """
    if not values:
        raise ConfigError(f"{name}={written} has no values")
    seen: dict[str, str] = {}
    for value in values:
        if not value and len(values) > 1:
            raise ConfigError(
                f"{name}={written}: there is nothing between two commas, or after the last; for "
                "an empty string write '\"\"'"
            )
        meaning = meaning_of(name, value)
        if meaning in seen:
            same = f" (as {seen[meaning]})" if seen[meaning] != value else ""
            raise ConfigError(f"{name}={_shorten(written)} has the value {value} twice{same}")
        seen[meaning] = value
    return Choice(name, tuple(values))


def meaning_of(name: str, value: str) -> str:
    """Return what equal values have in common, however they are written: 0.1 and 1e-1.

    Raises:
        ConfigError: If the value is not readable.
    """
    return json.dumps(resolve_scalars([_without_missing(parse_value(value, name))])[0])


def split_values(name: str, written: str) -> list[str]:
    """Return what stands between commas; brackets and quotes keep those inside them.

    Raises:
        ConfigError: If a bracket or a quote is not closed.
    """
    values = [""]
    waiting: list[str] = []  # the brackets that have to be closed
    quote = ""
    escaped = False
    for character in written:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped and quote == '"'
        elif waiting and character == waiting[-1]:
            waiting.pop()
        elif character in "\"'" and (not values[-1].strip() or values[-1].rstrip()[-1] in "[{,:("):
            quote = character
        elif character in _CLOSING:
            waiting.append(_CLOSING[character])
        elif character == "," and not waiting:
            values.append("")
            continue
        values[-1] += character
    if waiting or quote:
        raise ConfigError(
            f"{name}={_shorten(written)}: {quote or waiting[-1]} is missing; put a string that "
            f"holds it in quotes: {name}='\"...\"'"
        )
    stripped = [value.strip() for value in values]
    return stripped if written.strip() else [written]


def read_values(file: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises:
        ConfigError: If it can't be read, or has none.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8-sig").split("\n")
    except OSError as e:
        raise ConfigError(f"{file} can't be read: {e.strerror or e}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{file} is not UTF-8 (byte {e.start})") from e
    values = [line.strip() for line in lines if line.strip()]
    if not values:
        raise ConfigError(f"{file} has no values; write one on each line")
    return values


def _of_hydra(name: str, written: str) -> Axis:
    """Return the axis that Hydra's `interval(…)` or `tag(log, …)` means."""
    tags: list[str] = []
    inner = written.strip()
    while (match := re.fullmatch(r"tag\((.*)\)", inner, re.DOTALL)) is not None:
        *more, inner = (part.strip() for part in split_values(name, match[1]))
        tags += more
    interval = re.fullmatch(r"interval\((.*)\)", inner, re.DOTALL)
    unknown = sorted(set(tags) - {"log", "int"})
    if unknown or (interval is None and tags):
        raise ConfigError(
            f"{name}={written} is not understood; write {name}=log:LOW:HIGH, or one of "
            f"{', '.join(FORMS)}"
        )
    if interval is None:
        return parse_axis(name, inner)
    kinds = {"": "uniform", "int": "int", "log": "log", "intlog": "logint"}
    form = kinds["".join(sorted(set(tags)))]
    return build_form(name, form, interval[1].split(","), written)


def _refuse_unknown(name: str, written: str, form: str, inner: str) -> None:
    """Raise if a word before parentheses or a colon was meant as a form."""
    known = _ELSEWHERE.get(form.lower()) or (form.lower() if form.lower() in FORMS else None)
    if known is None:
        close = difflib.get_close_matches(form.lower(), FORMS, n=1, cutoff=_MIN_SIMILARITY)
        known = close[0] if close else None
    parts = re.split("[,:]", inner)
    has_numbers = any(not isinstance(parse_scalar(part.strip()), str) for part in parts)
    if known is None or not (has_numbers or form.lower() in _ELSEWHERE):
        return  # a string such as https://… or f(x)
    exponents = "; its bounds are the numbers themselves, not exponents" if known == "log" else ""
    raise ConfigError(
        f"{name}={_shorten(written)}: {form!r} is not a form here; write "
        f"{FORMS[known]}{exponents}. For the string itself: {name}='\"{_shorten(written)}\"'"
    )


def _is_one_call(written: str) -> bool:
    """Return whether the first parenthesis is closed by the last character."""
    stripped = written.strip()
    depth = 0
    for index, character in enumerate(stripped):
        depth += (character == "(") - (character == ")")
        if character == ")" and depth == 0:
            return index == len(stripped) - 1
    return False


def _number(written: str, where: str, form: str) -> float:
    number = parse_scalar(written.strip())
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or (isinstance(number, float) and not math.isfinite(number)):
        raise ConfigError(f"{where}: {written.strip()!r} is not a number; write {FORMS[form]}")
    return float(number) if isinstance(number, float) else number


def _without_missing(value: object) -> object:
    return str(value) if value == "???" else value


def _shorten(written: str) -> str:
    return written if len(written) <= 60 else f"{written[:57]}..."
