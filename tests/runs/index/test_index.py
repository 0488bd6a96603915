"""The index of a runs folder: it follows every change, and no state of its file loses a run."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index import index as index_module
from ml_experiments.runs.index import names
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.index.journal import (
    FILE_NAME,
    Position,
    begin_journal,
    read_changes,
    recorded,
)
from ml_experiments.runs.labels import edit_labels
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.settings import index_dir
from tests.support.run_folders import write_run

SUCCESS = RunFilter(status=("success",))


def run_id(number: int) -> str:
    return f"20260101-000000-{number:07}"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for number in range(6):
        write_run(folder, run_id(number), config={"lr": number}, results={"loss": number / 10})
    return folder


def ids(runs: Path, run_filter: RunFilter = SUCCESS) -> list[str]:
    return [row.run_id for row in RunRegistry(runs).rows(run_filter=run_filter)]


def index_file() -> Path:
    (file,) = index_dir().glob("*.sqlite3")
    return file


def age(folder: Path, seconds: int = 60) -> None:
    """Make a folder look as if its last change was some time ago."""
    before = time.time() - seconds
    os.utime(folder, (before, before))


@pytest.fixture
def listings(runs: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every listing of the runs folder."""
    seen: list[str] = []
    scandir = os.scandir

    def record(path: str) -> contextlib.AbstractContextManager[Iterator[os.DirEntry[str]]]:
        if path == runs:
            seen.append(str(path))
        return scandir(path)

    monkeypatch.setattr(names.os, "scandir", record)
    return seen


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every run folder that is read."""
    seen: list[str] = []
    read = index_module.read_row

    def record(folder: RunFolder) -> object:
        seen.append(folder.path.name)
        return read(folder)

    monkeypatch.setattr(index_module, "read_row", record)
    return seen


def test_what_has_not_changed_is_neither_listed_nor_read_again(
    runs: Path, listings: list[str], reads: list[str]
) -> None:
    age(runs)
    assert len(ids(runs)) == 6
    assert (len(listings), len(reads)) == (1, 6)
    assert len(ids(runs)) == 6
    assert (len(listings), len(reads)) == (1, 6)


def test_a_list_of_the_newest_reads_those_only(runs: Path, reads: list[str]) -> None:
    assert [row.run_id for row in RunRegistry(runs).rows(2)] == [run_id(5), run_id(4)]
    assert sorted(reads) == [run_id(4), run_id(5)]


def test_runs_that_the_journal_names_are_found_without_listing_the_folder(
    runs: Path, listings: list[str], reads: list[str]
) -> None:
    begin_journal(runs)
    age(runs)
    assert len(ids(runs)) == 6
    with recorded(runs, run_id(7), is_listed=True):
        write_run(runs, run_id(7))
    with recorded(runs, run_id(2)):
        shutil.rmtree(runs / run_id(2))
    assert ids(runs) == [run_id(n) for n in (7, 5, 4, 3, 1, 0)]
    assert (len(listings), len(reads)) == (1, 7)


def test_what_others_add_and_remove_is_found_by_listing_the_folder(
    runs: Path, listings: list[str]
) -> None:
    age(runs)
    assert len(ids(runs)) == 6
    write_run(runs, run_id(8))
    with recorded(runs, run_id(9)):  # explains only a part
        write_run(runs, run_id(9))
    shutil.rmtree(runs / run_id(0))
    assert ids(runs) == [run_id(n) for n in (9, 8, 5, 4, 3, 2, 1)]
    assert len(listings) == 2


def test_a_change_within_the_resolution_of_the_clock_is_found(runs: Path) -> None:
    assert len(ids(runs)) == 6
    status = runs.stat()
    write_run(runs, run_id(8))
    os.utime(runs, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert len(ids(runs)) == 7


def test_a_running_run_is_looked_at_again_until_it_has_ended(runs: Path, reads: list[str]) -> None:
    folder = write_run(
        runs, run_id(7), status=None, manifest={"process": this_process()}, config={"lr": 1}
    )
    running = RunFilter(status=("running",))
    assert ids(runs, running) == [run_id(7)]
    assert ids(runs, running) == [run_id(7)]
    source = runs / run_id(1) / "result.json"
    shutil.copy(source, folder.result_file)
    assert ids(runs, running) == []
    assert ids(runs)[0] == run_id(7)
    count = len(reads)
    assert ids(runs)[0] == run_id(7)
    assert len(reads) == count


def test_a_lost_run_is_seen_to_end_when_its_result_comes_after_all(runs: Path) -> None:
    folder = write_run(runs, run_id(7), status=None)
    lost = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    manifest = folder.read_manifest().to_dict()
    process = {"hostname": this_process().hostname, "pid": lost.pid, "create_time": 1.0}
    (folder.path / "manifest.json").write_text(json.dumps({**manifest, "process": process}))
    lost.kill()
    lost.communicate()
    assert ids(runs, RunFilter(where="error_kind == 'infrastructure'")) == [run_id(7)]
    shutil.copy(runs / run_id(1) / "result.json", folder.result_file)
    assert ids(runs)[0] == run_id(7)


def test_a_finished_run_that_is_begun_again_is_noticed(runs: Path) -> None:
    assert run_id(3) in ids(runs)
    with recorded(runs, run_id(3)):
        (runs / run_id(3) / "result.json").unlink()
    assert run_id(3) not in ids(runs)


def test_labels_are_indexed_at_once(runs: Path) -> None:
    named = RunFilter(where="name == 'best' and tags.stage == 'final' and 'why' in note")
    with contextlib.suppress(Exception):
        ids(runs, named)
    folder = RunFolder(runs / run_id(2))
    edit_labels(
        folder, lambda labels: type(labels)("best", {**labels.tags, "stage": "final"}, "why: best")
    )
    assert ids(runs, named) == [run_id(2)]


def test_a_row_that_is_shown_is_what_its_folder_says_though_nobody_said_it_changed(
    runs: Path,
) -> None:
    assert len(ids(runs)) == 6
    file = runs / run_id(5) / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "error"}))
    assert ids(runs) == [run_id(n) for n in (4, 3, 2, 1, 0)]


def test_a_lost_journal_lets_every_folder_be_looked_at(runs: Path, reads: list[str]) -> None:
    begin_journal(runs)
    failed = RunFilter(status=("error",))
    assert ids(runs, failed) == []
    file = runs / run_id(5) / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "status": "error"}))
    assert ids(runs, failed) == []  # it is not shown, so nothing says that it has changed
    (runs / FILE_NAME).unlink()
    assert ids(runs, failed) == [run_id(5)]
    count = len(reads)
    assert ids(runs, failed) == [run_id(5)]
    assert len(reads) == count


def test_a_small_folder_gets_no_journal_until_a_finished_run_changes(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recorded(runs, run_id(7), is_listed=True):
        write_run(runs, run_id(7))
    assert len(ids(runs)) == 7
    assert not (runs / FILE_NAME).exists()
    monkeypatch.setattr(names, "_MIN_JOURNALED", 3)
    assert len(ids(runs)) == 7
    assert (runs / FILE_NAME).exists()


def test_who_may_add_runs_may_write_the_journal(runs: Path) -> None:
    runs.chmod(0o775)
    begin_journal(runs)
    assert (runs / FILE_NAME).stat().st_mode & 0o777 == 0o664


def test_a_journal_keeps_lines_of_two_writers_and_skips_damaged_ones(tmp_path: Path) -> None:
    with recorded(tmp_path, "a"), recorded(tmp_path, "b"):
        pass
    journal = tmp_path / FILE_NAME
    journal.write_bytes(journal.read_bytes() + b"\xff\x00\n\tx\ty\n" + b"c\t1\t2\nhalf a li")
    changes, position, is_whole = read_changes(tmp_path, Position())
    assert [change.run_id for change in changes] == ["b", "a", "c"]
    assert is_whole
    journal.write_bytes(journal.read_bytes() + b"ne\t1\t2\n")
    changes, _, is_whole = read_changes(tmp_path, position)
    assert [change.run_id for change in changes] == ["half a line"]
    assert is_whole


def test_a_journal_cannot_name_what_is_outside_the_folder(runs: Path, tmp_path: Path) -> None:
    age(runs)
    assert len(ids(runs)) == 6
    write_run(tmp_path / "other", run_id(9))
    modified_at = runs.stat().st_mtime_ns
    for name in (f"../other/{run_id(9)}", "..", ".", "", "/", str(tmp_path / "other")):
        with (runs / FILE_NAME).open("a") as journal:
            journal.write(f"{name}\t{modified_at}\t{runs.stat().st_mtime_ns}\n")
    assert len(ids(runs)) == 6


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.unlink(),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"no database" * 1000),
        lambda file: os.truncate(file, file.stat().st_size // 2),
        lambda file: file.write_bytes(file.read_bytes()[:4096] + b"\xff" * 20000),
        lambda file: execute(file, "DROP TABLE vals"),
        lambda file: execute(file, "DELETE FROM state"),
        lambda file: execute(file, "PRAGMA user_version = 99"),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=[
        *("deleted", "empty", "no-database", "cut", "overwritten", "without-a-table"),
        *("without-state", "other-version", "a-folder"),
    ],
)
def test_a_damaged_index_heals(runs: Path, damage: object) -> None:
    expected = ids(runs)
    assert len(expected) == 6
    assert callable(damage)
    damage(index_file())
    where = RunFilter(where="config.lr >= 4")
    assert ids(runs, where) == [run_id(5), run_id(4)]
    assert ids(runs) == expected


def execute(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)


def test_an_index_that_another_process_has_locked_is_done_without(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_experiments.runs.index.database._WAIT_S", 0.1)
    assert len(ids(runs)) == 6
    write_run(runs, run_id(8))
    with contextlib.closing(sqlite3.connect(index_file(), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert len(ids(runs)) == 7


@pytest.mark.parametrize("place", ["/proc/nowhere", "file", "runs/file/deep"])
def test_where_no_index_can_be_kept_runs_are_found_all_the_same(
    runs: Path, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (runs / "file").touch()
    monkeypatch.setenv("ML_EXPERIMENTS_INDEX_DIR", str(tmp_path / place))
    assert ids(runs, RunFilter(where="config.lr >= 4")) == [run_id(5), run_id(4)]
    assert len(ids(runs)) == 6


def test_a_full_disk_under_an_old_index_hides_nothing_new(runs: Path) -> None:
    assert len(ids(runs)) == 6
    write_run(runs, run_id(8))
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from pathlib import Path\n"
        "from ml_experiments.runs.registry import RunRegistry\n"
        "from ml_experiments.runs.index.filters import RunFilter\n"
        f"rows = RunRegistry(Path({str(runs)!r})).rows(run_filter=RunFilter(status=('success',)))\n"
        "print(len(rows))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "7\n"
    assert len(ids(runs)) == 7


KILLED = """
import os, sys, signal
from pathlib import Path
from ml_experiments.runs.index import index
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.registry import RunRegistry
index._BATCH = 2
left = int(sys.argv[2])
write_row = index.write_row
def write(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    write_row(*arguments)
index.write_row = write
RunRegistry(Path(sys.argv[1])).rows(run_filter=RunFilter(status=("success",)))
"""


@pytest.mark.parametrize("written", [0, 1, 3, 5])
def test_an_index_whose_writer_was_killed_is_finished_by_the_next(runs: Path, written: int) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(runs), str(written)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert ids(runs, RunFilter(where="config.lr >= 0 and results.loss >= 0")) == ids(runs)
    assert len(ids(runs)) == 6


def _add_and_list(arguments: tuple[Path, int]) -> int:
    runs, number = arguments
    for step in range(5):
        name = f"20260102-000000-{number}{step:06}"
        with recorded(runs, name):
            write_run(runs, name, config={"lr": 1e6 + step})
        RunRegistry(runs).rows(3, RunFilter(where="config.lr >= 0"))
    return len(RunRegistry(runs).rows())


def test_several_processes_add_and_list_at_once(runs: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        counts = pool.map(_add_and_list, [(runs, n) for n in range(4)])
    assert max(counts) <= 26
    assert len(ids(runs, RunFilter(where="config.lr >= 1e6"))) == 20
    assert len(ids(runs)) == 26


def test_indexes_of_folders_that_are_gone_are_removed(runs: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        shutil.copytree(runs, tmp_path / name)
        assert len(ids(tmp_path / name)) == 6
    shutil.rmtree(tmp_path / "one")
    assert len(ids(runs)) == 6
    assert len(list(index_dir().glob("*.sqlite3"))) == 2


def test_another_folder_in_the_same_place_has_its_own_runs(runs: Path, tmp_path: Path) -> None:
    assert len(ids(runs)) == 6
    runs.rename(tmp_path / "old")
    write_run(runs, run_id(1), config={"lr": 50})
    age(runs, 3600)
    assert ids(runs, RunFilter(where="config.lr == 50")) == [run_id(1)]
    assert ids(runs, RunFilter(where="config.lr == 1")) == []


def test_the_index_is_for_its_user_only(runs: Path) -> None:
    ids(runs)
    assert index_file().parent.stat().st_mode & 0o77 == 0
