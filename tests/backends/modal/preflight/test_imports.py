"""The imports of one file, read without executing it."""

from __future__ import annotations

import gc
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ml_experiments.backends.modal.preflight.imports import imports_of


def found(source: str, package: str = "") -> dict[str, bool]:
    """Return each imported module and whether the file gets along without it."""
    imports = imports_of(textwrap.dedent(source), Path("x.py"), package)
    return {i.module: i.optional for i in imports}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a, b.c as d", {"a": False, "b.c": False}),
        ("from a.b import c", {"a.b": False}),
        ("def f():\n    import a\n    class K:\n        import b", {"a": False, "b": False}),
        ("async def f():\n    async with x:\n        import a", {"a": False}),
        ("try:\n    import a\nexcept ImportError:\n    a = None", {"a": True}),
        (
            "try:\n    import a\nexcept (KeyError, ModuleNotFoundError):\n    import b",
            {"a": True, "b": True},
        ),
        ("try:\n    import a\nexcept:\n    pass", {"a": True}),
        ("try:\n    import a\nexcept ValueError:\n    pass", {"a": False}),
        ("try:\n    pass\nexcept ImportError:\n    pass\nelse:\n    import a", {"a": False}),
        ("with contextlib.suppress(ImportError):\n    import a", {"a": True}),
        ("with contextlib.suppress(KeyError):\n    import a", {"a": False}),
        ("with open('f') as f:\n    import a", {"a": False}),
        ("if TYPE_CHECKING:\n    import a\nelse:\n    import b", {"b": False}),
        ("if typing.TYPE_CHECKING:\n    import a", {}),
        ("if not TYPE_CHECKING:\n    import a", {"a": False}),
        ("if TYPE_CHECKING or x:\n    import a", {"a": False}),
        ("if TYPE_CHECKING and x:\n    import a", {}),
        ("if __name__ == '__main__':\n    import a", {}),
        ("if __name__ != '__main__':\n    import a", {"a": False}),
        ("if sys.version_info >= (3, 11):\n    import a\nelse:\n    import b", {"a": False}),
        ("if sys.version_info < (3, 11, 4):\n    import a\nelse:\n    import b", {"b": False}),
        ("if sys.platform == 'win32':\n    import a\nelse:\n    import b", {"b": False}),
        (
            "if sys.version_info[0] == 2:\n    import a\nelse:\n    import b",
            {"a": False, "b": False},
        ),
        ("if flag:\n    import a", {"a": False}),
        ("if importlib.util.find_spec('a'):\n    import a", {"a": True}),
        ("m = importlib.import_module('a.b')", {"a.b": False}),
        ("m = import_module(f(import_module('a')))", {"a": False}),
        ("m = __import__('a')", {"a": False}),
        ("m = importlib.import_module(name)", {}),
        ("m = importlib.import_module(7)", {}),
        ("match x:\n    case 1:\n        import a", {"a": False}),
        ("for i in y:\n    import a\nelse:\n    import b", {"a": False, "b": False}),
    ],
)
def test_imports_that_a_container_would_reach(source: str, expected: dict[str, bool]) -> None:
    assert found(source) == expected


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("from . import a", "p.q", "p.q"),
        ("from .a import b", "p.q", "p.q.a"),
        ("from ..a import b", "p.q", "p.a"),
        ("from .. import a", "p.q", "p"),
        ("import_module('.a', __package__)", "p", "p.a"),
    ],
)
def test_relative_imports_start_from_the_package(source: str, package: str, expected: str) -> None:
    assert found(source, package) == {expected: False}


def test_a_relative_import_beyond_the_top_is_left_to_python() -> None:
    assert found("from ... import a", "p") == {}
    assert found("from . import a", "") == {}


def test_an_import_knows_its_line_and_names() -> None:
    [one] = imports_of("\n\nfrom a import b, c\n", Path("dir/x.py"), "")
    assert one.place == "dir/x.py:3"
    assert one.names == ("b", "c")


def test_a_file_that_is_not_python_is_a_syntax_error() -> None:
    with pytest.raises(SyntaxError):
        imports_of("def", Path("x.py"), "")


def test_files_are_read_in_several_threads_at_once() -> None:
    source = Path(__file__).read_text(encoding="utf-8") * 3
    at_depth = [0, 10, 20, 30]

    def read(depth: int) -> int:
        return read(depth - 1) if depth else len(imports_of(source, Path("x.py"), ""))

    def let_other_threads_run(phase: str, info: object) -> None:
        time.sleep(0.0001)

    thresholds = gc.get_threshold()
    gc.callbacks.append(let_other_threads_run)
    gc.set_threshold(200, 1000, 1000)
    try:
        with ThreadPoolExecutor(len(at_depth)) as threads:
            counts = list(threads.map(read, at_depth * 5))
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(let_other_threads_run)
    assert len(set(counts)) == 1
