"""Runs on several machines on Modal: containers of one cluster, each with a launcher."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from ml_experiments import (
    LocalBackend,
    ModalBackend,
    bench,
    run_experiment,
    submit_experiment,
    sweep,
)
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from modal_emulator import Emulator
from tests.support.launched_experiments import Regression, on_nodes, uses_accelerate
from tests.support.modal_runs import (
    WAIT_S,
    Recorder,
    containers_of,
    folder_of,
    function_of,
    run_command,
    wait_for_checkpoint,
)
from tests.support.waiting import wait_until

pytest.importorskip("torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="the loopback interface has one address there"
    ),
]

QUIET = Observer()
TWO_NODES: dict[str, Any] = {"launch": "torchrun", "gpu": "t4:8", "nodes": 2, "nproc_per_node": 1}
# under load, torch's launcher takes some seconds until the ranks begin; a tenth is left to save
TIMEOUT_S = 30  # on a busy machine, the start of both nodes takes half of it


class Waiting(NamedTuple):
    """A rank that waits: its node, its number, its process and its container."""

    node: int
    rank: int
    process: psutil.Process
    task_id: str


@pytest.fixture(scope="module")
def backend(modal_emulator_server: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


def wait_for_ranks(seen: Recorder) -> list[Waiting]:
    """Wait until both ranks do; return them in order."""
    pattern = rb"\[node(\d) rank(\d)\] waits as (\d+) in (\S+)\n"

    def found() -> list[Any]:
        return sorted(re.findall(pattern, seen.lines))

    wait_until(lambda: len(found()) == 2, "the start of both ranks", WAIT_S)
    return [
        Waiting(int(node), int(rank), psutil.Process(int(pid)), task_id.decode())
        for node, rank, pid, task_id in found()
    ]


def assert_all_have_ended(emulator: Emulator, result: RunResult, ranks: list[Waiting]) -> None:
    """No container of the run executes anything, and no process of a rank is left."""
    wait_until(
        lambda: not any(c.running_input_ids for c in containers_of(emulator, folder_of(result))),
        "the end of the input in all containers",
    )
    wait_until(
        lambda: not any(rank.process.is_running() for rank in ranks), "the end of the processes"
    )


def saved_in(result: RunResult) -> dict[str, str]:
    folder = folder_of(result).artifacts_dir
    names = [artifact.path for artifact in result.artifacts]
    return {name: (folder.parent / name).read_text() for name in names}


@pytest.fixture(scope="module")
def weights_of_one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    runs_dir: Path = tmp_path_factory.mktemp("runs")
    with LocalBackend() as backend:
        alone = run_experiment(
            Regression, backend=backend, seed=5, observer=QUIET, runs_dir=runs_dir
        )
    return alone.results["weights"]


@pytest.mark.parametrize("processes", [1, 2])
def test_two_nodes_come_to_the_weights_of_one_process(
    modal_emulator: Emulator, backend: ModalBackend, weights_of_one: Any, processes: int
) -> None:
    seen = Recorder()
    options = {**TWO_NODES, "nproc_per_node": processes, "seed": 5}
    result = run_experiment(Regression, backend=backend, observer=seen, **options)
    assert result.status is RunStatus.SUCCESS, result.error
    count = 2 * processes
    assert (result.results["rank"], result.results["world_size"]) == (0, count)
    for mine, expected in zip(result.results["weights"], weights_of_one, strict=True):
        assert mine == pytest.approx(expected, abs=1e-12)
    # node 0 is the run: its events, and the lines of all in its log, live too
    assert [e for e in seen.events if "progress" in e] == [f"progress {n}/6" for n in range(1, 7)]
    trained = [f"[node{rank // processes} rank{rank}] trained" for rank in range(count)]
    log = folder_of(result).log_file.read_text()
    assert sorted(line.partition(" with")[0] for line in log.splitlines()) == trained
    assert seen.lines.count(b"] trained with seed 5") == count
    folder = folder_of(result)
    assert (folder.read_spec().nodes, folder.read_spec().nproc_per_node) == (2, processes)
    place = folder.read_manifest().modal
    assert place is not None
    assert place.nodes == 2
    [attempt] = result.attempts
    assert attempt.place.startswith("Modal 2 x T4:8 fc-")
    # both machines are paid for
    assert any(": 2 x t4:8 for at most 14400 s; " in notice for notice in seen.notices)
    assert place.worst_case_usd == result.cost["worst_case_usd"]
    price = result.cost["at_most_usd"] / result.timings["container_s"]
    assert price > 2 * 8 * 0.000164
    shown = run_command(modal_emulator, folder.path.parent.parent, "runs", "show", result.run_id)
    assert f"2, each with {processes} process" in shown.stdout
    assert {c.gpu_count for c in containers_of(modal_emulator, folder)} == {8}


def test_accelerate_counts_the_processes_of_all_nodes(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    options = {**TWO_NODES, "launch": "accelerate"}
    result = run_experiment(uses_accelerate, backend=backend, observer=QUIET, **options)
    assert result.status is RunStatus.SUCCESS, result.error
    assert (result.results["processes"], result.results["total"]) == (2, 3)


def test_a_rank_that_fails_on_another_node_is_named_with_its_traceback(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    result = run_experiment(
        on_nodes, {"how": "fails"}, backend=backend, observer=QUIET, **TWO_NODES
    )
    error = result.error
    assert error is not None
    assert (error.kind, error.type) == (ErrorKind.EXPERIMENT, "ArithmeticError")
    assert error.message == "node 1, rank 1: a bad batch"
    first, *_, last = error.traceback.splitlines()
    assert (first, last) == ("node 1, rank 1:", "ArithmeticError: a bad batch")
    assert "launched_experiments.py" in error.traceback
    assert_all_have_ended(modal_emulator, result, [])


def test_a_cancel_ends_the_ranks_of_all_nodes(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    seen = Recorder()
    handle = submit_experiment(on_nodes, backend=backend, observer=seen, **TWO_NODES)
    ranks = wait_for_ranks(seen)
    assert [(rank.node, rank.rank) for rank in ranks] == [(0, 0), (1, 1)]
    assert ranks[0].task_id != ranks[1].task_id
    handle.cancel()
    result = handle.result(WAIT_S)
    assert (result.status, result.error) == (RunStatus.CANCELLED, None)
    assert_all_have_ended(modal_emulator, result, ranks)
    # each could save what it had; its file is brought here, whichever machine it was on
    interrupted = "KeyboardInterrupt"
    assert saved_in(result) == {
        "artifacts/saved0.txt": interrupted,
        "artifacts/saved1.txt": interrupted,
    }


def test_a_soft_timeout_reaches_the_ranks_of_all_nodes(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    seen = Recorder()
    options = {**TWO_NODES, "timeout_s": TIMEOUT_S}
    handle = submit_experiment(on_nodes, backend=backend, observer=seen, **options)
    ranks = wait_for_ranks(seen)
    result = handle.result(WAIT_S)
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    assert set(saved_in(result).values()) == {"SoftTimeout"}
    assert len(saved_in(result)) == 2
    assert_all_have_ended(modal_emulator, result, ranks)


def test_a_rank_of_another_node_that_goes_on_is_ended_at_the_timeout(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    seen = Recorder()
    options = {**TWO_NODES, "timeout_s": TIMEOUT_S}
    handle = submit_experiment(
        on_nodes, {"how": "is stubborn"}, backend=backend, observer=seen, **options
    )
    ranks = wait_for_ranks(seen)
    result = handle.result(WAIT_S)
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    # Modal itself is half a second later
    assert re.search(rf"ended (the run )?after {TIMEOUT_S} s", result.error.message)
    assert b"[node1 rank1] got SoftTimeout" in seen.lines
    assert_all_have_ended(modal_emulator, result, ranks)


@pytest.mark.parametrize("how", ["kill", "preempt"])
def test_a_run_that_loses_a_node_goes_on_from_its_checkpoint_in_another_cluster(
    modal_emulator: Emulator, backend: ModalBackend, how: str
) -> None:
    seen = Recorder()
    handle = submit_experiment(
        on_nodes, {"how": "saves"}, backend=backend, observer=seen, **TWO_NODES
    )
    ranks = wait_for_ranks(seen)
    wait_for_checkpoint(handle.run_id)
    (modal_emulator.kill if how == "kill" else modal_emulator.preempt)(ranks[1].task_id)
    result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results == ["saved by", 0]
    assert [attempt.kind for attempt in result.attempts] == [ErrorKind.PREEMPTED, None]
    assert not any(rank.process.is_running() for rank in ranks)
    # a machine that is taken away has time, which all ranks get to save what they have
    saved = sorted(file.name for file in folder_of(result).artifacts_dir.glob("saved*"))
    assert saved == (["saved0.txt", "saved1.txt"] if how == "preempt" else [])


def test_a_sweep_on_two_nodes(modal_emulator: Emulator) -> None:
    points = list(
        sweep(
            on_nodes,
            {"how": ["returns", "returns as well"]},
            backend="modal",
            parallel=1,
            **TWO_NODES,
        )
    )
    assert [point.result.results for point in points if point.result] == [{"world_size": 2}] * 2
    # one after the other, in one cluster
    [function] = [f for f in modal_emulator.functions("run_remote") if f.gpus == ("T4:8",)][-1:]
    containers = [c for c in modal_emulator.containers() if c.function_id == function.function_id]
    assert [each.inputs_taken for each in containers] == [2, 2]


def test_a_bench_on_two_nodes(modal_emulator: Emulator) -> None:
    report = bench(on_nodes, {"how": "returns"}, per="results.world_size", repeat=1, **TWO_NODES)
    [row] = report.rows
    assert (row.status, row.gpu, row.outputs) == ("measured", "t4:8", 2.0)
    [function] = [f for f in modal_emulator.functions("run_remote") if f.gpus == ("T4:8",)][-1:]
    containers = [c for c in modal_emulator.containers() if c.function_id == function.function_id]
    assert [each.inputs_taken for each in containers] == [2, 2]  # warm-up and run, on both


def test_a_cap_pays_for_all_nodes(modal_emulator: Emulator, backend: ModalBackend) -> None:
    handle = submit_experiment(
        on_nodes,
        {"how": "returns"},
        backend=backend,
        observer=QUIET,
        max_cost=1.0,
        **TWO_NODES,
    )
    result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.cost["worst_case_usd"] <= 1.0
    # with 16 GPUs and their CPU and memory, a dollar doesn't buy ten minutes
    assert (folder_of(result).read_spec().timeout_s or 0) < 400
    assert function_of(modal_emulator, result.run_id).gpus == ("T4:8",)
