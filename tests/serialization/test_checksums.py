"""The hashes of a folder's files, as `sha256sum` reads and writes them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from ml_experiments.serialization.checksums import (
    FILE_NAME,
    hash_file,
    read_checksums,
    write_checksums,
)

NAMES = [
    "plain.txt",
    "deep/a b.txt",
    "line\nbreak",
    "back\\slash",
    "\\n",
    "é",
    "byte\udcff",
    "r\rx",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * number)
    return tmp_path


def test_what_is_written_is_read_again(folder: Path) -> None:
    write_checksums(folder, NAMES, limit_s=60)
    assert read_checksums(folder) == {name: hash_file(folder / name) for name in NAMES}


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_sha256sum_checks_them_and_writes_the_same(folder: Path) -> None:
    write_checksums(folder, NAMES, limit_s=60)
    check = ["sha256sum", "--check", "--strict", "--quiet", FILE_NAME]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0
    written = subprocess.run(
        [b"sha256sum", b"--", *(name.encode("utf-8", "surrogateescape") for name in sorted(NAMES))],
        cwd=folder,
        capture_output=True,
        check=True,
    ).stdout
    assert written == (folder / FILE_NAME).read_bytes()
    (folder / "plain.txt").write_text("damaged")
    done = subprocess.run(check, cwd=folder, check=False, capture_output=True)
    assert b"plain.txt: FAILED" in done.stdout


def test_what_is_missing_or_takes_too_long_is_left_out(folder: Path) -> None:
    write_checksums(folder, [*NAMES, "missing"], limit_s=60)
    assert "missing" not in read_checksums(folder)
    write_checksums(folder, NAMES, limit_s=-1)
    assert set(read_checksums(folder)) <= {"plain.txt"}  # it is empty: there is nothing to read
    write_checksums(folder, [], limit_s=60)
    assert not (folder / FILE_NAME).exists()
    assert read_checksums(folder) == {}


def test_damaged_lines_are_left_out(folder: Path) -> None:
    write_checksums(folder, NAMES[:2], limit_s=60)
    whole = (folder / FILE_NAME).read_bytes()
    (folder / FILE_NAME).write_bytes(b"not a line\nabc  short\n" + whole)
    assert set(read_checksums(folder)) == set(NAMES[:2])
