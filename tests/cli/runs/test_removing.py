"""`ml-experiments runs rm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ml_experiments.runs.provenance.processes import this_process
from tests.cli.runs.conftest import Command
from tests.support.run_folders import write_run

RUNNING = "20260101-000000-0000009"


def run_id(number: int) -> str:
    return f"20260101-000000-{number:07}"


@pytest.fixture(autouse=True)
def runs(runs_dir: Path) -> Path:
    for number in (1, 2, 3):
        write_run(runs_dir, run_id(number), status="success" if number == 1 else "error")
    write_run(runs_dir, RUNNING, status=None, manifest={"process": this_process()})
    return runs_dir


def left(runs: Path) -> list[str]:
    return sorted(path.name[-1] for path in runs.iterdir())


def test_a_plan_is_shown_and_nothing_removed_without_consent(command: Command, runs: Path) -> None:
    shown = command("rm", "--status", "error", "--dry-run")
    assert shown.code == 0
    assert shown.out.splitlines()[-1].startswith("2 runs, 0.00 MB")
    refused = command("rm", "--status", "error")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert command("rm", run_id(1), "--json").code == 2
    assert left(runs) == ["1", "2", "3", "9"]


def test_runs_are_removed_by_filter_and_by_name(command: Command, runs: Path) -> None:
    done = command("rm", "--status", "error", "--yes")
    assert (done.code, done.out.splitlines()[-1]) == (0, "removed 2")
    assert left(runs) == ["1", "9"]
    done = command("rm", run_id(1), "--yes", "--json")
    record = json.loads(done.out)
    assert (record["removed"], record["failed"], record["kept"]) == (True, {}, [])
    assert [run["run_id"] for run in record["runs"]] == [run_id(1)]
    assert left(runs) == ["9"]


def test_a_running_run_is_kept_and_named(command: Command, runs: Path) -> None:
    done = command("rm", RUNNING, run_id(2), "--yes")
    assert done.code == 1
    assert f"kept: {RUNNING}: it is running" in done.out
    assert left(runs) == ["1", "3", "9"]
    nothing = command("rm", "--status", "running", "--yes")
    assert (nothing.code, nothing.out.splitlines()[0]) == (0, "0 runs, 0.00 MB")
    assert left(runs) == ["1", "3", "9"]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--yes",),
        ("last", "--status", "error", "--yes"),
        ("nothing", "--yes"),
        ("../runs", "--yes"),
        ("", "--yes"),
        ("--where", "config.lr < 3", "--yes"),
        ("--status", "eror", "--yes"),
    ],
)
def test_a_mistake_removes_nothing(
    command: Command, runs: Path, arguments: tuple[str, ...]
) -> None:
    done = command("rm", *arguments)
    assert done.code == (0 if "--where" in arguments else 2)
    assert left(runs) == ["1", "2", "3", "9"]


def test_what_could_not_be_removed_is_an_error(
    command: Command, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ml_experiments.runs.lock import RunLock
    from ml_experiments.runs.registry import RunRegistry

    lock = RunLock.take(RunRegistry(runs).find(run_id(1)))
    done = command("rm", run_id(1), run_id(2), "--yes")
    lock.release()
    assert done.code == 1
    assert f"not removed: {run_id(1)}" in done.err
    assert done.out.splitlines()[-1] == "removed 1"
    assert left(runs) == ["1", "3", "9"]
