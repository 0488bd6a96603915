"""Runs removed from Modal's volume, and from this machine."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ml_experiments.backends.modal.mounts import runs_volume
from ml_experiments.backends.modal.remote_runs import remove_from_volume, sizes_on_volume
from ml_experiments.runs.manifest import ModalPlace
from modal_emulator import Emulator
from tests.support.command import call
from tests.support.run_folders import write_run

FIRST, SECOND, THIRD = (f"20260101-000000-000000{number}" for number in (1, 2, 3))


@pytest.fixture
def on_volume(modal_emulator: Emulator) -> set[str]:
    assert modal_emulator.environment
    with runs_volume().batch_upload(force=True) as batch:
        for run_id in (FIRST, SECOND):
            batch.put_file(io.BytesIO(b"x" * 1000), f"/{run_id}/result.json")
            batch.put_file(io.BytesIO(b"x" * 500), f"/{run_id}/artifacts/deep/a.bin")
    return {FIRST, SECOND}


def there() -> set[str]:
    return {entry.path.strip("/") for entry in runs_volume().listdir("/")}


def test_runs_on_the_volume_have_a_size_and_are_removed(on_volume: set[str]) -> None:
    assert sizes_on_volume([FIRST, THIRD]) == {FIRST: 1500}
    remove_from_volume([FIRST, THIRD])
    assert there() & on_volume == {SECOND}


def test_rm_removes_from_both_places(on_volume: set[str], runs_dir: Path) -> None:
    place = ModalPlace(function_call_id="fc-1")
    for run_id in (FIRST, SECOND):
        write_run(runs_dir, run_id, backend="modal", manifest={"modal": place})
    write_run(runs_dir, THIRD)
    planned = call("runs", "rm", "--backend", "modal", "--from", "both", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "MB on Modal" in planned.stdout
    assert there() >= on_volume
    done = call("runs", "rm", FIRST, "--from", "modal", "--yes", "--json")
    assert json.loads(done.stdout)["on_modal"] == {FIRST: 1500}
    assert there() & on_volume == {SECOND}
    assert (runs_dir / FIRST).exists()
    done = call("runs", "rm", "--backend", "modal", "--from", "both", "--yes")
    assert done.returncode == 0, done.stderr
    assert there() & on_volume == set()
    assert [path.name for path in runs_dir.iterdir()] == [THIRD]
