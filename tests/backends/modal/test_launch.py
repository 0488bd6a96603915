"""Runs in several ranks on Modal: a process for each GPU of the container."""

from __future__ import annotations

from typing import Any

import pytest

from ml_experiments import ConfigError, ModalBackend, prepare_run, run_experiment
from ml_experiments.runs.result import RunStatus
from modal_emulator import Emulator
from tests.support.launched_experiments import Regression
from tests.support.modal_runs import Recorder, folder_of, function_of


def test_a_container_with_two_gpus_trains_in_two_ranks(modal_emulator: Emulator) -> None:
    pytest.importorskip("torch")
    seen = Recorder()
    with ModalBackend() as backend:
        result = run_experiment(
            *(Regression, {"steps": 2}),
            backend=backend,
            observer=seen,
            gpu="t4:2",
            launch="torchrun",
        )
    assert result.status is RunStatus.SUCCESS, result.error
    assert (result.results["rank"], result.results["world_size"]) == (0, 2)
    assert function_of(modal_emulator, result.run_id).gpus == ("T4:2",)
    folder = folder_of(result)
    assert folder.read_spec().nproc_per_node == 2
    assert [entry["metrics"]["step_of_rank"] for entry in result.metrics] == [0, 0]
    assert [e for e in seen.events if "progress" in e] == ["progress 1/2", "progress 2/2"]
    trained = [line for line in folder.log_file.read_text().splitlines() if "trained" in line]
    assert sorted(line[:15] for line in trained) == ["[rank0] trained", "[rank1] trained"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "h100:8,a100-80gb:4"}, "have different numbers of GPUs; say how many processes"),
        ({"gpu": "t4", "nproc_per_node": 2}, "than there are GPUs (1)"),
    ],
)
def test_more_processes_than_gpus_are_refused(options: dict[str, Any], message: str) -> None:
    with ModalBackend() as backend, pytest.raises(ConfigError) as caught:
        prepare_run(Regression, backend=backend, launch="torchrun", **options)
    assert message in str(caught.value)
