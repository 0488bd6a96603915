"""Containers that cost money with no run attached."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ml_experiments import ModalBackend, run_experiment
from ml_experiments.backends.modal.billing.idle import find_idle_apps, stop_apps
from ml_experiments.errors import BackendError
from ml_experiments.runner.run import submit_experiment
from modal_emulator import Emulator
from tests.support.modal_experiments import Counts, Greet
from tests.support.modal_runs import Recorder, run_command
from tests.support.waiting import wait_until


def test_a_warm_container_is_idle_once_its_run_has_ended_and_stop_ends_it(
    modal_emulator: Emulator, runs_dir: Path, tmp_path: Path
) -> None:
    with ModalBackend() as backend:
        result = run_experiment(Greet, {}, backend=backend, observer=Recorder(), gpu="t4")
        [app] = find_idle_apps(runs_dir)
        assert (app.run_ids, app.is_known) == ((result.run_id,), True)
        assert app.why == f"{result.run_id} ended: success"
        assert len(app.containers) == 1
        done = run_command(modal_emulator, tmp_path, "costs", "idle")
        assert f"{result.run_id} ended: success" in done.stdout
        assert "--stop ends it" in done.stdout
        done = run_command(modal_emulator, tmp_path, "costs", "idle", "--stop", "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["stopped"] == [app.app_id]
        wait_until(lambda: find_idle_apps(runs_dir) == [], "the end of the container")


def test_an_app_is_not_idle_while_a_run_goes_on_and_unknown_without_its_folder(
    modal_emulator: Emulator, runs_dir: Path
) -> None:
    recorder = Recorder()
    with ModalBackend() as backend:
        handle = submit_experiment(Counts, {}, backend=backend, observer=recorder, gpu="t4")
        assert recorder.printed.wait(60)
        assert find_idle_apps(runs_dir) == []
        kept = runs_dir.with_name("elsewhere")
        shutil.copytree(runs_dir, kept)
        [app] = find_idle_apps(runs_dir.with_name("none"))
        assert not app.is_known
        assert f"its run {handle.run_id} is not in" in app.why
        assert handle.folder.path.is_dir()
        handle.cancel()


def test_what_the_command_of_modal_does_not_list_is_an_error(
    modal_emulator: Emulator, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, "modal")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(BackendError, match="did not list the containers"):
        find_idle_apps(runs_dir)
    stop_apps([])
