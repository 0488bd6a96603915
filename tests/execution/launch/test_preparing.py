"""What is wrong with a run in several ranks is said before anything starts."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from typing import Any

import pytest

from ml_experiments import ConfigError, LocalBackend, prepare_run
from ml_experiments.backends.in_process import DebugBackend
from ml_experiments.backends.modal.preflight.packages import read_lock
from ml_experiments.errors import Error, PreflightError
from ml_experiments.execution.launch.preparing import PACKAGES, check_nodes
from tests.support.experiments import Fit


def prepared(**options: Any) -> tuple[int | None, str | None]:
    with LocalBackend() as backend:
        run = prepare_run(Fit, backend=backend, **options)
        assert run.template is not None
        backend.templates.release(run.template)
    return run.spec.nproc_per_node, run.setup_key


def test_there_is_a_process_for_each_gpu_and_no_set_up_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert prepared(launch="torchrun") == (3, None)
    assert prepared(launch="torchrun", nproc_per_node=2) == (2, None)
    count, setup_key = prepared()
    assert (count, setup_key is None) == (None, False)


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        ("", {"launch": "torchrun"}, "there is none; say how many processes shall compute"),
        ("0,1", {"launch": "torchrun", "nproc_per_node": 3}, "than there are GPUs (2)"),
        ("", {"nproc_per_node": 2}, "add launch='torchrun' or launch='accelerate'"),
        ("", {"launch": "torchrn"}, "launch: given 'torchrn': it must be 'torchrun' or"),
        ("", {"launch": "torchrun", "nproc_per_node": 0}, "greater than or equal to 1"),
        ("", {"launch": "torchrun", "escalate_to": "h100"}, "can't go with launch"),
    ],
)
def test_a_number_of_processes_that_makes_no_sense_is_refused(
    gpus: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    with pytest.raises(ConfigError) as caught:
        prepared(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes: given 0: it must be greater than or equal to 1"),
        ({"nodes": 33}, "less than or equal to 32"),
        ({"nodes": 2}, "nodes=2 is for a run on Modal, whose functions can have several machines"),
        ({"nodes": 2, "launch": "torchrun", "nproc_per_node": 1}, "on the local backend"),
    ],
)
def test_several_machines_are_refused_where_there_is_one(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(**options)
    assert message in str(caught.value)


@pytest.mark.parametrize("backend", ["local", "debug", "slurm"])
def test_only_modal_has_several_machines(backend: str) -> None:
    check_nodes(1, None, backend)
    check_nodes(2, "torchrun", "modal")
    with pytest.raises(ConfigError, match=f"on the {backend} backend, a run has one"):
        check_nodes(2, "torchrun", backend)
    with pytest.raises(ConfigError, match="say which one: launch='torchrun' or"):
        check_nodes(2, None, "modal")


def test_the_debug_backend_starts_no_processes() -> None:
    with DebugBackend() as backend, pytest.raises(Error, match="the debug backend runs in this"):
        prepare_run(Fit, backend=backend, launch="torchrun", nproc_per_node=2)


def test_a_launcher_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == "accelerate" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(PreflightError, match="needs accelerate, not installed here; pip"):
        prepared(launch="accelerate", nproc_per_node=2)


def test_modals_image_has_the_launchers() -> None:
    assert {package for packages in PACKAGES.values() for package in packages} <= set(read_lock())
