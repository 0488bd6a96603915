"""`reuse=True` on Modal: the same rules, with the image for packages and the volume for models."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import ModalBackend, RunResult, run_experiment, submit_experiment
from ml_experiments.backends.modal import backend as modal_backend
from ml_experiments.backends.modal.mounts import cache_volume
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runner.reuse import existing
from ml_experiments.runner.reuse.finding import find_earlier
from ml_experiments.runs.folder import RunFolder
from modal_emulator import Emulator
from tests.support.hub_cache import commit_of
from tests.support.modal_runs import WAIT_S, Recorder

pytestmark = pytest.mark.slow


def test_a_run_on_modal_is_reused_without_a_call(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text("def train(model_name='org/small'): return 1\n")
    monkeypatch.chdir(tmp_path)

    def put_ref(revision: str) -> None:
        with cache_volume().batch_upload(force=True) as batch:
            path = "/huggingface/hub/models--org--small/refs/main"
            batch.put_file(io.BytesIO(revision.encode()), path)

    def differences(backend: ModalBackend, **options: Any) -> list[str]:
        prepared = prepare_run("mine.train", {}, backend=backend, **options)
        search = find_earlier(prepared, backend, runs_dir)
        return [each.what for each in search.differences]

    with ModalBackend() as backend:
        options: dict[str, Any] = {"backend": backend, "gpu": "t4", "reuse": True}
        first = run_experiment("mine.train", {}, observer=Recorder(), **options)
        assert first.status == "success", first.error
        assert first.run_dir is not None
        assert differences(backend, gpu="t4") == ["model org/small"]  # it loaded none
        used = {"repo_id": "org/small", "kind": "model", "revision": commit_of("a")}
        manifest = first.run_dir / "manifest.json"
        manifest.write_text(
            json.dumps({**json.loads(manifest.read_text()), "cached_models": [used]})
        )
        put_ref(commit_of("a"))
        calls = len(modal_emulator.calls())
        again = run_experiment("mine.train", {}, observer=Recorder(), **options)
        assert (again.run_id, again.is_reused) == (first.run_id, True)
        assert len(modal_emulator.calls()) == calls
        assert differences(backend, gpu="l4") == ["backend and GPU"]
        put_ref(commit_of("b"))
        assert differences(backend, gpu="t4") == ["model org/small"]
        put_ref(commit_of("a"))
    with ModalBackend(pip=["timm==1.0.0"]) as other:
        assert differences(other, gpu="t4") == ["package timm"]


def test_an_id_that_is_on_the_volume_is_brought_here_and_not_run_again(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text("def train(n=1): return n\n")
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"gpu": "t4", "run_id": "nightly-4", "observer": Recorder()}
    with ModalBackend() as backend:
        first = run_experiment("mine.train", {"n": 4}, backend=backend, **options)
        assert first.results == 4, first.error
        runs_dir.rename(tmp_path / "machine-a")
        calls = len(modal_emulator.calls())
        again = run_experiment("mine.train", {"n": 4}, backend=backend, **options)
        assert (again.run_id, again.results) == ("nightly-4", 4)
        assert len(modal_emulator.calls()) == calls
        assert RunFolder(runs_dir / "nightly-4").read_spec().config == {"n": 4}


def test_of_two_machines_that_submit_one_id_at_once_one_runs_it(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\ndef train(n=1):\n    time.sleep(2)\n    return n\n"
    )
    monkeypatch.chdir(tmp_path)
    claim, barrier = modal_backend.claim_id, threading.Barrier(2)

    def claim_together(folder: RunFolder) -> None:
        barrier.wait(60)  # neither has seen the other's run on the volume
        claim(folder)

    monkeypatch.setattr(modal_backend, "claim_id", claim_together)
    # both are in this process, which lives; of another machine's process it is not known
    monkeypatch.setattr(
        existing, "is_without_client", lambda folder: not folder.outcome().status.has_ended
    )
    calls = len(modal_emulator.calls())

    def submit(machine: str) -> RunResult:
        options: dict[str, Any] = {"gpu": "t4", "run_id": "nightly-5", "observer": Recorder()}
        with ModalBackend() as backend:
            handle = submit_experiment(
                "mine.train", {"n": 5}, backend=backend, runs_dir=tmp_path / machine, **options
            )
            return handle.result(WAIT_S)

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(submit, ["a", "b"])
    assert (first.results, second.results) == (5, 5)
    assert len(modal_emulator.calls()) == calls + 1
