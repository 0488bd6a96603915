"""The imports of one source file, read from its syntax tree; the file isn't executed.

Left out is what a container would never reach: `if TYPE_CHECKING:`, `if __name__ ==
"__main__":`, and branches for another platform or Python than the container's.
"""

from __future__ import annotations

import ast
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# what runs in a container: see gpu_image/
CONTAINER_PYTHON = (3, 11)
CONTAINER_PLATFORM = "linux"

# CPython 3.11 keeps its depth in one place for all threads (python/cpython#106905): two that parse
# at the same time can end in a SystemError
_PARSING = threading.Lock()

_MISSING_MODULE_ERRORS = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Import:
    """One module that a file imports.

    Attributes:
        module: Its absolute name.
        names: What `from module import …` takes from it; each may be a submodule.
        file: The file with the import.
        line: Its line there.
        optional: Whether the file gets along without it.
    """

    module: str
    names: tuple[str, ...]
    file: Path
    line: int
    optional: bool

    @property
    def place(self) -> str:
        """Where the import stands, as `file:line`."""
        return f"{self.file}:{self.line}"


def imports_of(source: str, file: Path, package: str) -> list[Import]:
    """Return the imports of a file in the order in which they stand.

    Args:
        source: The text of the file.
        file: Where it stands; for messages.
        package: The package that relative imports start from; empty for none.

    Raises:
        SyntaxError: If the text is not Python.
    """
    collector = _Collector(file, package)
    collector.visit_all(parse(source, file).body, optional=False)
    return collector.found


def parse(source: str, file: Path) -> ast.Module:
    """Return the syntax tree of a file; may be called from several threads.

    Raises:
        SyntaxError: If the source is not Python.
    """
    with _PARSING:
        return ast.parse(source, filename=str(file))


class _Collector:
    def __init__(self, file: Path, package: str) -> None:
        self.file = file
        self.package = package
        self.found: list[Import] = []

    def visit_all(self, nodes: Sequence[ast.AST], *, optional: bool) -> None:
        for node in nodes:
            self._visit(node, optional)

    def _visit(self, node: ast.AST, optional: bool) -> None:
        match node:
            case ast.Import():
                for alias in node.names:
                    self._add(alias.name, (), node.lineno, optional)
            case ast.ImportFrom():
                names = tuple(alias.name for alias in node.names if alias.name != "*")
                module = self._absolute("." * node.level + (node.module or ""))
                if module:
                    self._add(module, names, node.lineno, optional)
            case ast.If():
                self._visit_if(node, optional)
            case ast.Try() | ast.TryStar():
                forgiving = any(_forgives_missing(handler.type) for handler in node.handlers)
                self.visit_all(node.body, optional=optional or forgiving)
                # a fallback is needed only where the first choice is missing
                self.visit_all(node.handlers, optional=optional or forgiving)
                self.visit_all([*node.orelse, *node.finalbody], optional=optional)
            case ast.With():
                suppressed = any(_suppresses_missing(item.context_expr) for item in node.items)
                self.visit_all(node.body, optional=optional or suppressed)
            case ast.Call():
                self._visit_call(node, optional)
                self.visit_all(list(ast.iter_child_nodes(node)), optional=optional)
            case _:
                self.visit_all(list(ast.iter_child_nodes(node)), optional=optional)

    def _visit_if(self, node: ast.If, optional: bool) -> None:
        reached = _value_in_container(node.test)
        guarded = any(_is_call_of(n, "find_spec") for n in ast.walk(node.test))
        if reached is not False:
            self.visit_all(node.body, optional=optional or guarded)
        if reached is not True:
            self.visit_all(node.orelse, optional=optional or guarded)

    def _visit_call(self, node: ast.Call, optional: bool) -> None:
        if not (_is_call_of(node, "import_module") or _is_call_of(node, "__import__")):
            return
        if node.args and isinstance(node.args[0], ast.Constant):
            name = node.args[0].value
            module = self._absolute(name) if isinstance(name, str) else ""
            if module:
                self._add(module, (), node.lineno, optional)

    def _add(self, module: str, names: tuple[str, ...], line: int, optional: bool) -> None:
        self.found.append(Import(module, names, self.file, line, optional))

    def _absolute(self, module: str) -> str:
        level = len(module) - len(module.lstrip("."))
        if level == 0:
            return module
        parents = self.package.split(".") if self.package else []
        if level > len(parents):
            return ""  # beyond the top: Python itself says so when the class is imported
        return ".".join([*parents[: len(parents) - level + 1], *filter(None, [module[level:]])])


def _is_call_of(node: ast.AST, name: str) -> bool:
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return (isinstance(function, ast.Name) and function.id == name) or (
        isinstance(function, ast.Attribute) and function.attr == name
    )


def _names_in(node: ast.expr) -> Iterator[str]:
    for child in ast.walk(node):
        if isinstance(child, ast.Name):
            yield child.id
        elif isinstance(child, ast.Attribute):
            yield child.attr


def _forgives_missing(caught: ast.expr | None) -> bool:
    return caught is None or not _MISSING_MODULE_ERRORS.isdisjoint(_names_in(caught))


def _suppresses_missing(context: ast.expr) -> bool:
    return (
        isinstance(context, ast.Call)
        and _is_call_of(context, "suppress")
        and any(_forgives_missing(argument) for argument in context.args)
    )


def _value_in_container(test: ast.expr) -> bool | None:
    """Return what a condition is in a container, or None when that can't be read off."""
    match test:
        case ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"):
            return False
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            value = _value_in_container(operand)
            return None if value is None else not value
        case ast.BoolOp(op=kind, values=values):
            known = [_value_in_container(value) for value in values]
            decisive = isinstance(kind, ast.Or)
            if decisive in known:
                return decisive
            return None if None in known else not decisive
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARE:
            return _compare(left, op, right)
    return None


def _compare(left: ast.expr, op: ast.cmpop, right: ast.expr) -> bool | None:
    try:
        expected = ast.literal_eval(right)
    except ValueError:
        return None
    match left:
        case ast.Name(id="__name__") if expected == "__main__":
            actual: Any = ""  # a container imports the file
        case ast.Attribute(value=ast.Name(id="sys"), attr="platform"):
            actual = CONTAINER_PLATFORM
        case ast.Attribute(value=ast.Name(id="sys"), attr="version_info"):
            if not isinstance(expected, tuple):
                return None
            # a longer tuple names a patch release, which the image does not fix
            actual = CONTAINER_PYTHON
            expected = expected[:2]
        case _:
            return None
    try:
        return bool(_COMPARE[type(op)](actual, expected))
    except TypeError:
        return None
