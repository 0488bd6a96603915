"""Sweeps that a controller on Modal takes up again, extends, or spares runs of before."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ml_experiments.backends.modal.detached.volume_folder import list_folders
from ml_experiments.runner.sweeps.folder import find_sweep
from ml_experiments.runner.sweeps.recorded import recorded_points
from modal_emulator import Emulator
from tests.support.modal_runs import handed_out_usd, run_command, start_command
from tests.support.remote_sweeps import (
    MEETING,
    begin_detached,
    containers_of,
    controllers_of,
    meetings,
    replace_controller,
    spent_usd,
    statuses,
    wait_for_end,
)
from tests.support.waiting import wait_until


def test_a_sweep_of_this_machine_goes_on_on_modal(
    modal_emulator: Emulator,
    tmp_path: Path,
    runs_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mine.py").write_text(MEETING)  # not in the folder that it is started in
    (tmp_path / "needs.txt").write_text("einops\n")
    with meetings() as points:
        arguments = ("lib/mine.py:train", "lr=0.1,0.2,0.3,0.4", f"port={points.port}")
        more = (
            "--gpu",
            "t4",
            "--parallel",
            "2",
            "--max-cost",
            "100",
            "--requirements",
            "needs.txt",
        )
        client = start_command(modal_emulator, tmp_path, "sweep", *arguments, *more)
        held = dict([points.next(), points.next()])
        held[0.1].send(b"n")
        points.answer(0.3, b"x")
        number, fourth = points.next()
        assert number == 0.4
        folder = find_sweep(runs_dir, "last")
        client.send_signal(signal.SIGKILL)
        client.communicate()

        again = begin_detached(modal_emulator, tmp_path, runs_dir, "resume", "last")
        assert again.path == folder.path
        assert spent_usd(folder) < 100
        # the one that has failed runs again once there is room for it: two go on
        fourth.send(b"x")
        points.answer(0.1, b"x")
        held[0.2].send(b"x")
        wait_for_end(folder)
    assert set(statuses(folder).values()) == {"success"}
    assert len(list(runs_dir.glob("*/spec.json"))) == 4  # no point has another run
    attempts = {p.overrides[0]: len(p.result.attempts) for p in recorded_points(folder)}
    assert attempts == {"lr=0.1": 2, "lr=0.2": 1, "lr=0.3": 1, "lr=0.4": 1}
    assert handed_out_usd(containers_of(modal_emulator, folder)) <= spent_usd(folder) < 10

    # another machine gets all of it
    elsewhere = runs_dir.with_name(f"{runs_dir.name}-elsewhere")
    monkeypatch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(elsewhere))
    assert run_command(modal_emulator, tmp_path, "runs", "sync").returncode == 0
    for point in recorded_points(folder):
        assert (elsewhere / point.result.run_id / "artifacts" / "lr.txt").exists()


def test_a_sweep_that_modal_has_controlled_is_taken_up_there_and_here(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text(MEETING)
    with meetings() as points:
        start = ("mine.train", "lr=0.1,0.2", f"port={points.port}", "--gpu", "t4", "--parallel")
        cap = ("1", "--max-cost", "100")
        folder = begin_detached(modal_emulator, tmp_path, runs_dir, *start, *cap)
        points.answer(0.1, b"n")
        points.answer(0.2, b"x")
        wait_for_end(folder)
        assert statuses(folder) == {"lr=0.1": "error", "lr=0.2": "success"}
        first_usd = spent_usd(folder)

        begin_detached(modal_emulator, tmp_path, runs_dir, "resume", "last", "--failed")
        assert spent_usd(folder) > first_usd  # what is reserved for it comes on top
        number, failed = points.next()
        assert number == 0.1
        wait_until(lambda: statuses(folder)["lr=0.1"] == "running", "the next attempt")
        shown = run_command(modal_emulator, tmp_path, "sweep", "show", "last").stdout
        assert "it goes on" in shown
        assert "run what is missing with" not in shown
        replace_controller(modal_emulator, folder)
        failed.send(b"x")
        wait_for_end(folder)
        assert set(statuses(folder).values()) == {"success"}
        points_there = recorded_points(folder)
        # so that they count as earlier runs of the same experiment
        assert {point.result.experiment_class for point in points_there} == {"mine.train"}
        second_usd = spent_usd(folder)
        assert first_usd < second_usd < 10

        begin_detached(modal_emulator, tmp_path, runs_dir, "extend", "last", "lr=0.3,0.4")
        assert folder.read_spec().space.count == 4
        points.answer(0.3, b"x")
        points.answer(0.4, b"n")
        wait_for_end(folder)
        assert statuses(folder)["lr=0.4"] == "error"
        ours = containers_of(modal_emulator, folder)
        assert max(second_usd, handed_out_usd(ours)) < spent_usd(folder) < 10

        # this machine goes on, and what Modal has of the sweep is older from then on
        here = ("sweep", "resume", "last", "--json")
        client = start_command(modal_emulator, tmp_path, *here)
        points.answer(0.4, b"x")
        client.communicate()
        assert client.returncode == 0
    assert folder.path.name not in list_folders(".sweeps")
    assert run_command(modal_emulator, tmp_path, "sweep", "show", "last").returncode == 0
    assert set(statuses(folder).values()) == {"success"}
    none = run_command(modal_emulator, tmp_path, "sweep", "resume", "last", "--detach")
    assert "no point is left to run; nothing was started" in none.stdout
    assert not controllers_of(modal_emulator, folder)


def test_a_detached_sweep_spares_what_has_run_here(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text(MEETING)
    with meetings() as points:
        first, port = ("mine.train", "--gpu", "t4"), f"port={points.port}"
        folder = begin_detached(modal_emulator, tmp_path, runs_dir, *first, "lr=0.1", port)
        points.answer(0.1, b"x")
        wait_for_end(folder)
        assert statuses(folder) == {"lr=0.1": "success"}

        reuse = ("sweep", *first, "lr=0.1,0.2", port, "--reuse", "--detach")
        begun = run_command(modal_emulator, tmp_path, *reuse)
        assert begun.returncode == 0, begun.stderr
        assert "1 point reused, for $0" in begun.stdout
        second = find_sweep(runs_dir, "last")
        points.answer(0.2, b"x")
        wait_for_end(second)

        # what a sampler suggests isn't known before
        random = ("lr=uniform:0:1", port, "--sampler", "random", "--trials", "1", "--reuse")
        begun = run_command(modal_emulator, tmp_path, "sweep", *first, *random, "--detach")
        assert "controlled on this machine" in begun.stderr
        points.next()[1].send(b"x")
        third = find_sweep(runs_dir, "last")
        wait_until(lambda: not third.is_running, "the end of the sweep")
        assert not third.remote_file.exists()
        assert set(statuses(third).values()) == {"success"}
    assert statuses(second) == {"lr=0.1": "success", "lr=0.2": "success"}
    [point] = recorded_points(folder)
    taken, own = recorded_points(second)
    assert (taken.result.run_id, taken.result.is_reused) == (point.result.run_id, True)
    assert not own.result.is_reused
    none = run_command(modal_emulator, tmp_path, *reuse)
    assert none.returncode == 0, none.stderr
    assert "2 points reused, for $0" in none.stdout
    assert "no point is left to run; nothing was started" in none.stdout
