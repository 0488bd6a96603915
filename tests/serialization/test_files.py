"""Files appear whole or not at all, and what is read can be written again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments.serialization.files import open_atomically, parse_strict_json


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(TypeError), open_atomically(file) as new:
        new.writelines([b"half of the n", None])  # type: ignore[list-item]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "1e999", "-1e999", "{", "", "1 2"])
def test_what_could_not_be_written_as_json_again_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_strict_json(text)


def test_json_is_read_as_it_is() -> None:
    assert parse_strict_json('{"a": [1, 1.5, "NaN", null]}\n') == {"a": [1, 1.5, "NaN", None]}
