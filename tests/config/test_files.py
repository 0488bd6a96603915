"""Config files are read, or named with the line of what is wrong."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_experiments.config.loading import load_config
from ml_experiments.errors import ConfigError
from tests.support.configs import write_file


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.yaml", "a: 1\nb: 2\na: 3\n", "line 3, column 1: the key 'a' is there twice"),
        ("c.yaml", "a:\n  b: 1\n  b: 2\n", "line 3, column 3: the key 'b' is there twice"),
        ("c.yaml", "a:\n\tb: 1\n", "line 2, column 1: a tab"),
        ("c.yaml", "a: [1, 2\n", "line 2"),
        ("c.yaml", "- 1\n- 2\n", "holds a list, not fields"),
        ("c.yaml", "just text", "holds a str, not fields"),
        ("c.yaml", "a: !!python/object:os.system x", "line 1"),
        ("c.yaml", "? [1, 2]\n: x\n", "a key is not a string"),
        ("c.yaml", "a: !!binary aGk=\n", "a: a bytes is not JSON"),
        ("c.yaml", "a: 1\n---\nb: 2\n", "line 2"),
        ("c.yaml", "a: !!timestamp x\n", "line 1, column 4: 'x' is not of the type !!timestamp"),
        ("c.yaml", "a: 1\nb: [!!bool x]\n", "line 2, column 5: 'x' is not of the type !!bool"),
        ("c.yaml", "a: !!int ''\n", "'' is not of the type !!int"),
        ("c.yaml", "a: !!int x\n", "'x' is not of the type !!int"),
        ("c.yaml", "a: !!float ''\n", "'' is not of the type !!float"),
        ("c.yaml", "a: !!timestamp 2026-13-40\n", "'2026-13-40' is not of the type !!timestamp"),
        ("c.yaml", "a: !!binary é\n", "line 1, column 4"),
        ("c.yaml", "a: !!map x\n", "line 1"),
        ("c.yaml", "a: !!seq x\n", "line 1"),
        ("c.yaml", "a: !!set [x]\n", "line 1"),
        ("c.yaml", "a: !!omap x\n", "line 1"),
        ("c.yaml", "a: !!unknown x\n", "line 1"),
        ("c.yaml", f"a: {'1' * 5000}\n", "line 1"),
        ("c.yaml", "a: &x [*x]\n", "nested deeper"),
        ("c.yaml", "a: " + "[" * 1100, "nested deeper"),
        ("c.yaml", "a: " + "[" * 150 + "]" * 150, "nested deeper"),
        ("c.yaml", b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8"),
        ("c.yaml", b"a: \x00\x01", "special characters"),
        ("c.json", '{"a": 1, "a": 2}', "'a' is there twice"),
        ("c.json", '{"a": 1,\n "b" 2}', "line 2, column 6"),
        ("c.json", "", "line 1, column 1"),
        ("c.json", "[1]", "holds a list, not fields"),
        ("c.json", '{"a":' * 100_000, "nested deeper"),
        ("c.toml", "a = 1", "*.yaml, *.yml or *.json"),
        ("c", "a: 1", "*.yaml, *.yml or *.json"),
    ],
)
def test_a_bad_config_file_is_named_with_the_line(
    name: str, content: str | bytes, message: str, tmp_path: Path
) -> None:
    file = write_file(tmp_path, name, content)
    with pytest.raises(ConfigError) as caught:
        load_config(file, [])
    assert str(file) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.slow
def test_a_bomb_of_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 8)]
    with pytest.raises(ConfigError, match="more than 1,000,000 values"):
        load_config(write_file(tmp_path, "c.yaml", "\n".join(lines)), [])


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml can't be read: No such file"):
        load_config(tmp_path / "missing.yaml", [])
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match=r"folder\.yaml can't be read: Is a directory"):
        load_config(tmp_path / "folder.yaml", [])
    if os.geteuid() != 0:
        file = write_file(tmp_path, "secret.yaml", "a: 1")
        file.chmod(0)
        with pytest.raises(ConfigError, match="Permission denied"):
            load_config(file, [])


def test_files_of_both_kinds_are_read(tmp_path: Path) -> None:
    yaml = "\ufeffa: 1e-3\n1: one\non: [yes, '2026', 2026-01-01]\nb: &x {c: 1}\nd: {<<: *x, e: 2}\n"
    assert load_config(write_file(tmp_path, "c.YAML", yaml), []) == {
        "a": 1e-3,
        "1": "one",
        "on": [True, "2026", "2026-01-01"],
        "b": {"c": 1},
        "d": {"c": 1, "e": 2},
    }
    assert load_config(write_file(tmp_path, "c.json", '{"a": [1e3, null, "x"]}'), []) == {
        "a": [1000.0, None, "x"]
    }
    assert load_config(write_file(tmp_path, "empty.yaml", "# nothing\n"), ["a=1"]) == {"a": 1}


@settings(deadline=None)
@given(content=st.binary() | st.text().map(str.encode))
def test_no_file_raises_anything_but_a_config_error(content: bytes, tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("file")
    for name in ("c.yaml", "c.json"):
        with contextlib.suppress(ConfigError):
            assert isinstance(load_config(write_file(folder, name, content), []), dict)
