"""Files appear whole or not at all, and what is read can be written again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ml_experiments.serialization.files import (
    open_atomically,
    parse_strict_json,
    remove_temporary_files,
    sync_files,
)


def test_a_block_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    with pytest.raises(TypeError), open_atomically(file) as new:
        new.writelines([b"half of the n", None])  # type: ignore[list-item]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("written", ["NaN", "[Infinity]", "1e999", "-1e999", "{", "", "1 2"])
def test_what_could_not_be_written_as_json_again_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_strict_json(written)


def test_json_is_read_as_it_is() -> None:
    assert parse_strict_json('{"a": [1, 1.5, "NaN", null]}\n') == {"a": [1, 1.5, "NaN", None]}


WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from ml_experiments.serialization.files import open_atomically
with open_atomically(Path(sys.argv[1])) as file:
    file.write(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_was_writing_can_be_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "artifacts"
    folder.mkdir(parents=True)
    for name in ("whole", ".hidden.tmp", "mine.tmp", ".ml-experiments-notes.tmp"):
        (folder / name).write_text("kept")
    kept = set(tmp_path.rglob("*"))
    command = [sys.executable, "-c", WRITES_FOR_EVER, folder / "part"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert len(set(tmp_path.rglob("*")) - kept) == 1
    remove_temporary_files(tmp_path / "run")
    assert set(tmp_path.rglob("*")) == kept
    remove_temporary_files(tmp_path / "not there")


@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("has_syncfs", [True, False])
def test_files_are_synced_in_any_number_and_on_any_system(
    count: int, has_syncfs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_syncfs:
        monkeypatch.setattr("ctypes.CDLL", lambda *_args, **_options: object())
    files = [tmp_path / str(number) for number in range(count)]
    for file in files:
        file.write_text("content")
    sync_files(files)
    assert [file.read_text() for file in files] == ["content"] * count
