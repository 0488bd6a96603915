"""`runs pull` and `runs sync`: files are those that the run has left, and what it cost is known."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from ml_experiments import ModalBackend, RunResult, load_run, run_experiment
from ml_experiments.backends.modal.mounts import runs_volume
from ml_experiments.backends.modal.remote_runs import bring_here
from ml_experiments.errors import BackendError
from modal_emulator import Emulator
from tests.support.command import call
from tests.support.modal_runs import Recorder

pytestmark = pytest.mark.slow

LEAVES = """
from ml_experiments import current_run
def leaves():
    for name in ("a", "b", "deep/c"):
        file = current_run().output_dir / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name * 1000)
"""


@pytest.fixture
def result(modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunResult:
    (tmp_path / "leaving.py").write_text(LEAVES)
    monkeypatch.chdir(tmp_path)
    with ModalBackend() as backend:
        return run_experiment("leaving.leaves", {}, backend=backend, observer=Recorder(), gpu="t4")


def test_what_is_damaged_here_is_fetched_again_and_what_is_whole_is_not(
    modal_emulator: Emulator, result: RunResult, runs_dir: Path
) -> None:
    assert result.run_dir is not None
    artifacts, run_id = result.run_dir / "artifacts", result.run_id
    assert bring_here(run_id, runs_dir).damaged_here == ()
    kept = (artifacts / "b").stat()
    (artifacts / "a").write_text("A" * 1000)  # the size is the same
    (artifacts / "deep/c").unlink()
    done = call("runs", "pull", run_id)
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"{run_id}: damaged here, and fetched again: artifacts/a\n"
    assert (artifacts / "a").read_text() == "a" * 1000
    assert (artifacts / "deep/c").read_text() == "deep/c" * 1000
    assert (artifacts / "b").stat().st_mtime_ns == kept.st_mtime_ns
    assert call("runs", "pull", run_id).stderr == ""
    assert load_run(run_id).cost == result.cost
    with runs_volume().batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(b"A" * 1000), f"/{run_id}/artifacts/a")
    (artifacts / "a").unlink()
    done = call("runs", "pull", run_id)
    assert done.returncode == 1
    assert "damaged on the volume, and not what the run left: artifacts/a\n" in done.stderr


def test_a_pull_that_was_broken_off_goes_on(
    modal_emulator: Emulator, result: RunResult, runs_dir: Path, tmp_path: Path
) -> None:
    runs_dir.rename(tmp_path / "machine-a")
    modal_emulator.fail_rpc("VolumeGetFile2", nth=4, status="PERMISSION_DENIED")
    with pytest.raises(BackendError):
        bring_here(result.run_id, runs_dir)
    draft = runs_dir / f".{result.run_id}.sync"
    there = {file: file.stat().st_ino for file in draft.rglob("artifacts/**/*") if file.is_file()}
    assert there
    assert not (runs_dir / result.run_id).exists()  # it is there as a whole, or not at all
    done = call("runs", "pull", "20200101-000000-0000000", result.run_id)
    assert (done.returncode, done.stdout) == (2, f"{runs_dir / result.run_id}\n")
    assert "20200101-000000-0000000" in done.stderr
    synced = load_run(result.run_id)
    assert synced.cost["estimate_usd"] == pytest.approx(result.cost["estimate_usd"])
    assert synced.attempts[0].cost_usd == synced.cost["estimate_usd"] > 0
    [row] = json.loads(call("runs", "list", "--json", "--offline").stdout)
    assert row["cost_usd"] == synced.cost["estimate_usd"]
    brought = runs_dir / result.run_id
    for file, inode in there.items():
        assert (brought / file.relative_to(draft)).stat().st_ino == inode
    names = sorted(p.name for p in (brought / "artifacts").rglob("*") if p.is_file())
    assert names == ["a", "b", "c"]
