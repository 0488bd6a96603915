"""Conditions on runs, such as `config.lr < 1e-3 and results.accuracy > 0.9`, as SQL.

A condition is written like a Python expression; it is parsed, and never evaluated. A comparison
holds only for a run that has the value.
"""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ml_experiments.errors import ConfigError
from ml_experiments.runs.index.rows import COLUMNS, Scalar, suggest_column

_MAX_LENGTH = 10_000
_MAX_DEPTH = 100
_OPERATORS: Mapping[type[ast.cmpop], str] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "=",
    ast.NotEq: "<>",
}
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "<>": "<>"}
_CONSTANTS: Mapping[str, Scalar | None] = {
    "true": True,
    "false": False,
    "none": None,
    "null": None,
    "nan": "nan",
    "inf": math.inf,
}
_STRING = re.compile(r"\"[^\"]*\"|'[^']*'")
_SINGLE_EQUALS = re.compile(r"(?<![<>=!])=(?!=)")
_UNFINISHED = re.compile(r"([<>=(,]|\b(and|or|not|in))\s*$")
# what other languages write
_FOREIGN = re.compile(
    r"(?P<logic>&&?|\|\|?|!(?!=)|\b(?:AND|OR|NOT)\b)|(?P<part>~|\b(?:like|contains)\b)|\b(?P<range>between)\b",
)
_INSTEAD = {
    "logic": "write and, or, not",
    "part": 'write "part" in name',
    "range": "write 0.1 < config.lr < 0.3, for example",
}
_GROUPS = ("config", "results", "tags")


@dataclass(frozen=True)
class Condition:
    """SQL that follows WHERE, and its parameters."""

    sql: str
    parameters: tuple[Scalar, ...] = ()

    def __and__(self, other: Condition) -> Condition:
        return Condition(f"({self.sql} AND {other.sql})", (*self.parameters, *other.parameters))


def parse_where(where: str, paths: Callable[[], Iterable[str]]) -> Condition:
    """Return a condition as SQL.

    Args:
        where: What a user wrote.
        paths: Returns the paths of all values that runs have, such as `config.lr`.

    Raises:
        ConfigError: If it isn't a condition, or no run has what it names.
    """
    if len(where) > _MAX_LENGTH:
        raise ConfigError(f"--where takes at most {_MAX_LENGTH:,} characters, not {len(where):,}")
    lead = len(where) - len(where.lstrip())
    where = where[lead:].replace("\n", " ")
    if not where.strip():
        raise ConfigError("--where is empty; write a condition such as: config.lr < 1e-3")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in strings
            tree = ast.parse(where, mode="eval")
    except SyntaxError as e:
        raise _syntax_problem(where, e) from e
    except (ValueError, MemoryError, RecursionError) as e:
        raise ConfigError(f"--where can't be read: {e or type(e).__name__}") from e
    return _Compiler(where, paths).compile(tree.body)


def value_condition(path: str, sql: str, *parameters: Scalar) -> Condition:
    """Return the condition that a run's value at a path fulfils `value …`."""
    inner = "SELECT run FROM vals WHERE path = (SELECT id FROM paths WHERE path = ?)"
    # "+": SQLite would look up each of the values' runs, and sort them all
    return Condition(f"+runs.id IN ({inner} AND {sql} ORDER BY run)", (path, *parameters))


class _Compiler:
    def __init__(self, where: str, paths: Callable[[], Iterable[str]]) -> None:
        self._where = where
        self._paths = paths

    def compile(self, node: ast.expr, depth: int = 0) -> Condition:
        if depth > _MAX_DEPTH:
            raise self._problem(node, "is nested too deeply")
        match node:
            case ast.BoolOp(op=operator, values=parts):
                compiled = [self.compile(part, depth + 1) for part in parts]
                word = " AND " if isinstance(operator, ast.And) else " OR "
                return Condition(
                    f"({word.join(c.sql for c in compiled)})",
                    tuple(p for c in compiled for p in c.parameters),
                )
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.compile(operand, depth + 1)
                return Condition(f"(NOT {inner.sql})", inner.parameters)
            case ast.Compare(left=left, ops=operators, comparators=others):
                sides = [left, *others]
                conditions = [
                    self._compare(one, operator, other)
                    for one, operator, other in zip(sides, operators, others, strict=False)
                ]
                result = conditions[0]
                for condition in conditions[1:]:
                    result = result & condition
                return result
            case ast.Name() | ast.Attribute() | ast.Subscript():
                name = self._name(node)
                raise self._problem(
                    node,
                    f"is compared with nothing; write {name} > 0.5 or {name} == true, for example",
                )
        raise self._problem(node, "is no comparison, such as config.lr < 1e-3")

    def _compare(self, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Condition:
        if isinstance(operator, ast.In | ast.NotIn):
            return self._contained(left, right, is_negated=isinstance(operator, ast.NotIn))
        if isinstance(operator, ast.Is | ast.IsNot):
            operator = ast.Eq() if isinstance(operator, ast.Is) else ast.NotEq()
        sign = _OPERATORS[type(operator)]
        if not self._is_name(left):
            if not self._is_name(right):
                raise self._problem(left, "has a value on both sides; compare a field with a value")
            left, right, sign = right, left, _MIRRORED[sign]
        elif self._is_name(right):
            word = ast.get_source_segment(self._where, right) or ""
            raise self._problem(right, f'is not a value; a string stands in quotes: "{word}"')
        return self._simple(self._field(left), sign, self._value(right), right)

    def _simple(
        self, field: str, sign: str, value: Scalar | None, node: ast.expr | None = None
    ) -> Condition:
        is_column = field in COLUMNS
        side = f"runs.{field}" if is_column else "value"
        parameters: tuple[Scalar, ...] = ()
        if value is None:
            if sign not in ("=", "<>"):
                raise self._problem(node, "can't be ordered; write == none or != none")
            if is_column:
                return Condition(f"({side} IS {'' if sign == '=' else 'NOT '}NULL)")
            found = value_condition(field, "1")
            return Condition(f"(NOT {found.sql})", found.parameters) if sign == "=" else found
        if isinstance(value, str):
            sql, parameters = f"{side} {sign} ?", (value,)
            if sign in ("<", "<="):  # numbers sort before strings
                sql += f" AND {side} >= ''"
        else:
            sql, parameters = f"{side} {sign} ?", (value,)
            if sign in (">", ">="):
                sql += f" AND {side} <= 9e999"
        return (
            Condition(f"coalesce({sql}, 0)", parameters)
            if is_column
            else value_condition(field, sql, *parameters)
        )

    def _contained(self, left: ast.expr, right: ast.expr, *, is_negated: bool) -> Condition:
        if isinstance(right, ast.Tuple | ast.List | ast.Set):
            field = self._field(left)
            found = [self._simple(field, "=", self._value(item), item) for item in right.elts]
            sql = f"({' OR '.join(['0', *(c.sql for c in found)])})"
            parameters = tuple(p for c in found for p in c.parameters)
        else:
            part = self._value(left)
            if not isinstance(part, str):
                raise self._problem(
                    left, 'is no string; write "part" in name, or status in ("a", "b")'
                )
            field = self._field(right)
            if field in COLUMNS:
                sql, parameters = f"coalesce(instr(runs.{field}, ?) > 0, 0)", (part,)
            else:
                condition = value_condition(field, "instr(value, ?) > 0", part)
                sql, parameters = condition.sql, condition.parameters
        return Condition(f"(NOT {sql})" if is_negated else sql, parameters)

    def _is_name(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id.lower() not in _CONSTANTS
        return isinstance(node, ast.Attribute | ast.Subscript)

    def _field(self, node: ast.expr) -> str:
        if not self._is_name(node):
            raise self._problem(
                node, "is a value; a field stands there, such as config.lr or status"
            )
        name = self._name(node)
        if name in COLUMNS:
            return name
        known = tuple(self._paths())
        if name in known:
            return name
        nearest = suggest_column(name, known)
        if name.partition(".")[0] in _GROUPS:
            if not known:  # nothing has run yet
                return name
            inside = [path for path in known if path.startswith(f"{name}.")]
            more = f"; there is {', '.join(inside[:5])}" if inside else ""
            raise self._problem(node, f"is a value that no run has{nearest}{more}")
        there = f"; there are {', '.join(COLUMNS)}, and config.…, results.…, tags.…"
        raise self._problem(node, f"is not known{nearest or there}")

    def _name(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return name
            case ast.Attribute(value=inner, attr=name):
                return f"{self._name(inner)}.{name}"
            case ast.Subscript(value=inner, slice=ast.Constant(value=str(name))):
                return f"{self._name(inner)}.{name}"
        raise self._problem(node, 'is no field; write config.lr, or config["a name"]')

    def _value(self, node: ast.expr) -> Scalar | None:
        match node:
            case ast.Constant(value=value) if value is None or isinstance(value, Scalar):
                if isinstance(value, int) and abs(value) >= 2**63:
                    return float(value)
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                number = self._value(operand)
                if isinstance(number, int | float):
                    return -number
            case ast.Name(id=name) if name.lower() in _CONSTANTS:
                return _CONSTANTS[name.lower()]
            case ast.Name(id=name):
                raise self._problem(node, f'is not a value; a string stands in quotes: "{name}"')
        raise self._problem(node, "is no number and no string; a string stands in quotes")

    def _problem(self, node: ast.expr | None, problem: str) -> ConfigError:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd | ast.BitOr):
            problem = "is not understood; write and, or, not"
        start = _column(self._where, node.col_offset) if node is not None else 0
        end = _column(self._where, node.end_col_offset or 0) if node is not None else 1
        return _error(self._where, start, end, f"{self._where[start:end]} {problem}")


def _syntax_problem(where: str, error: SyntaxError) -> ConfigError:
    message, start = error.msg or "", max((error.offset or 1) - 1, 0)
    if "never closed" in message or "unterminated" in message:
        end = start + 1 if "never closed" in message else len(where)
        return _error(where, start, end, message.partition(" (detected")[0])
    bare = _STRING.sub(lambda string: "_" * len(string[0]), where)
    equals = _SINGLE_EQUALS.search(bare)
    if equals is not None:
        return _error(where, *equals.span(), "= compares nothing; write ==")
    foreign = _FOREIGN.search(bare)
    if foreign is not None:
        instead = next(text for name, text in _INSTEAD.items() if foreign[name])
        return _error(where, *foreign.span(), f"{foreign[0]} is not understood; {instead}")
    rest = where[start:].split()
    if not rest or _UNFINISHED.search(bare):
        return _error(where, end := len(where.rstrip()) + 1, end, "a value is missing at the end")
    problem = "is not a condition here"
    if rest[0].isidentifier() and start and where[start - 1] == ".":
        problem = f'is a reserved word; write {where[: start - 1].split()[-1]}["{rest[0]}"]'
    return _error(where, start, start + len(rest[0]), f"{rest[0]} {problem}")


def _error(where: str, start: int, end: int, problem: str) -> ConfigError:
    marks = " " * start + "^" * max(1, end - start)
    return ConfigError(f"--where: {problem}\n  {where}\n  {marks}")


def _column(where: str, offset: int) -> int:
    """Return the character at a byte, which is what `ast` counts."""
    return len(where.encode("utf-8")[:offset].decode("utf-8", "ignore"))
