"""`save_checkpoint` and `latest_checkpoint`: formats, rotation, damage, kills, full disks."""

from __future__ import annotations

import errno
import json
import logging
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ml_experiments.errors import CheckpointError
from ml_experiments.experiment.checkpoints import (
    Checkpoint,
    latest_checkpoint,
    save_checkpoint,
)
from ml_experiments.experiment.context import RunContext
from tests.support.small_disk import small_disk


@pytest.fixture
def saved() -> list[str]:
    return []


@pytest.fixture
def run(tmp_path: Path, saved: list[str]) -> Iterator[RunContext]:
    """A run; `saved` gets an entry for each checkpoint that it reports."""
    state = random.getstate()
    yield RunContext(
        run_id="one",
        _output_dir=tmp_path / "artifacts",
        _checkpoint_dir=tmp_path / "checkpoints",
        seed=3,
        _log=lambda *_: None,
        _progress=lambda *_: None,
        _on_checkpoint=lambda: saved.append("saved"),
    )
    random.setstate(state)


def latest(run: RunContext) -> Checkpoint:
    found = run.latest_checkpoint()
    assert found is not None
    return found


def test_a_run_without_checkpoints_has_none_and_makes_no_folder(
    run: RunContext, tmp_path: Path
) -> None:
    assert run.latest_checkpoint() is None
    assert list(tmp_path.iterdir()) == []


def test_plain_values_come_back_as_they_were(run: RunContext, saved: list[str]) -> None:
    state = {"step": 3, "loss": float("nan"), "best": [1.5, None, True], "name": "ü\ud800"}
    run.save_checkpoint(state, step=3)
    assert repr(latest(run).load()) == repr(state)
    assert (latest(run).step, latest(run).format, saved) == (3, "json", ["saved"])


@pytest.mark.parametrize("state", [{"a": (1, 2)}, {1: 2}, {"a": {1, 2}}, {"a": object()}])
def test_what_json_would_change_is_refused_and_nothing_is_left(
    run: RunContext, state: Any, saved: list[str]
) -> None:
    with pytest.raises(CheckpointError, match="the state"):
        run.save_checkpoint(state)
    assert list(run.checkpoint_dir.iterdir()) == []
    assert saved == []


@pytest.mark.parametrize("keep", [0, -1, True, 1.5, "2"])
def test_keep_is_a_number_of_checkpoints(run: RunContext, keep: Any) -> None:
    with pytest.raises(CheckpointError, match="keep is"):
        run.save_checkpoint({}, keep=keep)


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_newest_are_kept(run: RunContext, keep: int) -> None:
    for step in range(7):
        run.save_checkpoint({"step": step}, step=step, keep=keep)
    kept = [json.loads((p / "state.json").read_text())["step"] for p in _folders(run)]
    assert kept == list(range(7 - keep, 7))
    assert latest(run).step == 6


def _folders(run: RunContext) -> list[Path]:
    return sorted(run.checkpoint_dir.iterdir())


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "record cut", "record missing"])
def test_a_damaged_newest_falls_back_to_the_one_before(
    run: RunContext, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(2):
        run.save_checkpoint({"step": step, "values": [0] * 100}, step=step)
    newest = _folders(run)[-1]
    file = newest / ("checkpoint.json" if damage.startswith("record") else "state.json")
    content = file.read_bytes()
    if damage.endswith("missing"):
        file.unlink()
    elif damage.endswith("cut"):
        file.write_bytes(content[:-10])
    else:
        file.write_bytes(content.replace(b"0", b"1", 1))
    with caplog.at_level(logging.WARNING):
        assert latest(run).load()["step"] == 0
    assert f"checkpoint {newest} is damaged" in caplog.text
    # it takes no place among those that are kept
    run.save_checkpoint({"step": 2}, step=2)
    run.save_checkpoint({"step": 3}, step=3)
    assert [latest(run).step, len(_folders(run))] == [3, 2]


def test_files_of_a_function_and_folders_and_single_files_are_kept(
    run: RunContext, tmp_path: Path
) -> None:
    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights.bin").write_bytes(b"w")

    run.save_checkpoint(write)
    assert (latest(run).load() / "deep" / "weights.bin").read_bytes() == b"w"
    run.save_checkpoint(latest(run).path / "deep")
    assert (latest(run).load() / "weights.bin").read_bytes() == b"w"
    (tmp_path / "one.txt").write_text("one")
    run.save_checkpoint(str(tmp_path / "one.txt"))
    assert (latest(run).load() / "one.txt").read_text() == "one"


def test_a_function_that_fails_or_writes_nothing_leaves_the_older_one(run: RunContext) -> None:
    run.save_checkpoint({"step": 1}, step=1)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"h")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        run.save_checkpoint(fail)
    with pytest.raises(CheckpointError, match="wrote nothing"):
        run.save_checkpoint(lambda _: None)
    with pytest.raises(CheckpointError, match="no file or folder"):
        run.save_checkpoint(Path("nowhere"))
    assert len(_folders(run)) == 1
    assert latest(run).step == 1


def test_the_random_numbers_after_a_checkpoint_are_those_that_were_drawn(run: RunContext) -> None:
    run.save_checkpoint({})
    drawn = [random.random(), random.gauss(), float(np.random.rand()), float(np.random.randn())]
    latest(run).load()
    assert drawn == [
        *(random.random(), random.gauss()),
        *(float(np.random.rand()), float(np.random.randn())),
    ]


KILLED = """
import os, sys
from pathlib import Path
from ml_experiments.experiment.checkpoints import save_checkpoint

def write(folder):
    (folder / "half").write_bytes(b"h")
    os.kill(os.getpid(), 9)

for state in ({"step": 1}, write):
    save_checkpoint(Path(sys.argv[1]), state, step=1, keep=2, format=None)
"""


def test_a_kill_while_one_is_written_leaves_the_one_before(run: RunContext) -> None:
    command = [sys.executable, "-c", KILLED, str(run.checkpoint_dir)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert [path.name for path in _folders(run)] == [".000002.tmp", "000001"]
    assert latest(run).load() == {"step": 1}
    run.save_checkpoint({"step": 2}, step=2)  # clears up
    assert [path.name for path in _folders(run)] == ["000001", "000002"]


def test_other_files_of_the_folder_are_left_alone(run: RunContext) -> None:
    (run.checkpoint_dir / "mine.pt").write_bytes(b"m")
    (run.checkpoint_dir / "7").mkdir()
    for step in range(4):
        run.save_checkpoint({}, step=step)
    assert {"mine.pt", "7"} <= {path.name for path in _folders(run)}


@pytest.mark.slow
def test_torch_states_are_loaded_without_unpickling_objects(run: RunContext) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": (1, 2)}
    run.save_checkpoint(state)
    drawn = torch.rand(4)
    loaded = latest(run).load()
    assert latest(run).format == "torch"
    assert torch.equal(loaded["model"]["weight"], model.weight)
    assert loaded["optimizer"]["state"][0]["exp_avg"].shape == (2, 3)
    assert loaded["step"] == (1, 2)
    assert torch.equal(torch.rand(4), drawn)
    with pytest.raises(CheckpointError, match=r"posix\.system|Bad"):
        run.save_checkpoint({"w": model.weight.detach(), "bad": Bad()})
    with pytest.raises(CheckpointError, match=r"state_dict\(\)"):
        run.save_checkpoint(model)
    assert latest(run).load()["step"] == (1, 2)


class Bad:
    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.slow
def test_safetensors_takes_a_dict_of_tensors(run: RunContext) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    run.save_checkpoint(weights, format="safetensors")
    loaded = latest(run).load()
    assert (latest(run).path / "state.safetensors").exists()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    with pytest.raises(CheckpointError, match="takes a dict of tensors"):
        run.save_checkpoint({"a": 1}, format="safetensors")
    with pytest.raises(CheckpointError, match="safetensors can't save"):
        run.save_checkpoint({"a": weights["a"], "c": weights["a"]}, format="safetensors")
    with pytest.raises(CheckpointError, match="write one of torch, safetensors, json"):
        run.save_checkpoint({}, format="pickle")  # type: ignore[arg-type]


def test_on_a_full_disk_the_older_checkpoint_stays_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        save_checkpoint(disk, {"step": 1}, step=1, keep=2, format=None)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(disk, {"values": "x" * 500_000}, step=2, keep=2, format=None)
        assert [path.name for path in disk.iterdir()] == ["000001"]
        found = latest_checkpoint(disk)
        assert found is not None
        assert found.load() == {"step": 1}
