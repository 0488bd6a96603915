"""What a run may climb to, and after what."""

from __future__ import annotations

from typing import Any

import pytest

from ml_experiments import ConfigError, LocalBackend, prepare_run
from ml_experiments.errors import Error, GpuTypeError
from ml_experiments.runner.escalation import check_attempts, ladder_of, with_more_memory
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.runs.spec import RunSpec


def fit(steps: int = 1) -> int:
    return steps


@pytest.mark.parametrize(
    ("given", "ladder"),
    [
        (None, None),
        (False, None),
        (True, "larger"),
        ("larger", "larger"),
        (" A100-80GB, h100:2", "a100-80gb,h100:2"),
    ],
)
def test_a_ladder_is_a_list_of_gpu_types_or_each_larger_one(
    given: str | bool | None, ladder: str | None
) -> None:
    assert ladder_of(given) == ladder


def test_a_field_that_stands_where_the_ladder_would_is_told_as_one() -> None:
    with pytest.raises(ConfigError, match="write --escalate=larger"):
        ladder_of("lr=3")
    with pytest.raises(GpuTypeError, match="did you mean 'h100'"):
        ladder_of("h10")


@pytest.mark.parametrize(
    ("options", "backend", "message"),
    [
        ({"retries": 1}, "debug", "retries can't go with the debug backend"),
        ({"escalate": True}, "local", "escalate_to=GPU"),
        ({"escalate_to": "t4"}, "modal", "escalate_to is for a run on this machine"),
        ({"escalate_to": "t44"}, "local", "not a GPU type"),
    ],
)
def test_attempts_that_a_backend_can_not_make_are_refused(
    options: dict[str, Any], backend: str, message: str
) -> None:
    with pytest.raises(Error, match=message):
        check_attempts(options, backend)


def test_they_are_refused_before_anything_starts() -> None:
    with LocalBackend() as backend, pytest.raises(ConfigError, match="escalate is for"):
        prepare_run(fit, backend=backend, escalate=True)


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_only_a_lack_of_memory_makes_a_run_climb(kind: ErrorKind) -> None:
    here = RunSpec("id", "a:b", {}, 1, "", escalate_to="t4", escalate="l4")
    climbed = with_more_memory(here, RunError(kind, "", ""), Manifest())
    assert (climbed is not None) == (kind in (ErrorKind.CUDA_OOM, ErrorKind.HOST_OOM))
    there = RunSpec("id", "a:b", {}, 1, "", backend="modal", gpu="t4", escalate="l4")
    climbed = with_more_memory(there, RunError(kind, "", ""), Manifest())
    assert (climbed is not None) == (kind is ErrorKind.CUDA_OOM)
    if climbed is not None:
        assert climbed.gpu == "l4"


def test_the_gpu_that_was_got_counts_where_several_were_asked_for() -> None:
    spec = RunSpec("id", "a:b", {}, 1, "", backend="modal", gpu="l4,h100", escalate="larger")
    full = RunError(ErrorKind.CUDA_OOM, "", "")
    got = Manifest(environment={"gpus": [{"name": "NVIDIA L4"}]})
    climbed = with_more_memory(spec, full, got)
    assert climbed is not None
    assert climbed.gpu == "l40s"
