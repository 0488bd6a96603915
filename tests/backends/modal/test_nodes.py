"""Runs on several machines on Modal: containers of one cluster, each with a launcher."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ml_experiments import ModalBackend, run_experiment
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.result import RunStatus
from modal_emulator import Emulator
from tests.support.launched_experiments import Regression
from tests.support.modal_runs import Recorder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="the loopback interface has one address there"
    ),
]

QUIET = Observer()
TWO_NODES: dict[str, Any] = {
    "launch": "torchrun",
    "gpu": "t4:8",
    "nodes": 2,
    "nproc_per_node": 1,
    "seed": 5,
}


@pytest.fixture(scope="module")
def backend(modal_emulator_server: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


def test_a_training_on_two_nodes(modal_emulator: Emulator, backend: ModalBackend) -> None:
    seen = Recorder()
    result = run_experiment(Regression, {"steps": 2}, backend=backend, observer=seen, **TWO_NODES)
    assert result.status is RunStatus.SUCCESS, result.error
    assert (result.results["rank"], result.results["world_size"]) == (0, 2)
