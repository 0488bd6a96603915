"""Caps: what is refused, what Modal is told, and what it hands out when the client is gone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_experiments import (
    BackendError,
    BudgetError,
    ConfigError,
    LocalBackend,
    ModalBackend,
    prepare_run,
)
from ml_experiments.backends.modal import app_pool
from ml_experiments.backends.modal import plan as container_plan
from ml_experiments.backends.modal.billing import prices
from ml_experiments.backends.modal.billing.prices import GPU_USD_PER_S, container_usd_per_s
from ml_experiments.backends.modal.container.run_remote import with_time_left
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.runner.budget.reserving import (
    Budget,
    above_limit,
    open_ledger,
    read_spent,
    reserve,
)
from ml_experiments.runner.resume import resume_run
from ml_experiments.runner.run import run_experiment, submit_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import ModalPlace
from ml_experiments.runs.result import ErrorKind, RunStatus
from modal_emulator import Emulator
from tests.support.modal_experiments import Fails, Greet, NeedsMemory, Resumes
from tests.support.modal_runs import WAIT_S, Recorder, folder_of, function_of, run_command
from tests.support.run_folders import write_run
from tests.support.waiting import wait_until

# of a T4 with all the CPU and memory that its container's limits allow
T4_USD_PER_S = container_usd_per_s(parse_gpu("t4").choices[0], 16, 32)
STARTUP_S, IDLE_S = 20, 2


@pytest.fixture
def backend(modal_emulator: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


@pytest.fixture
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make minutes to seconds, for a test that waits until the money is spent."""
    monkeypatch.setattr(container_plan, "MIN_RUN_S", 1)
    monkeypatch.setattr(container_plan, "MIN_STARTUP_S", STARTUP_S)
    for module in (container_plan, app_pool):
        monkeypatch.setattr(module, "IDLE_S", IDLE_S)


def cost_of(run_s: float, startup_s: float = STARTUP_S, idle_s: float = IDLE_S) -> float:
    return T4_USD_PER_S * (startup_s + run_s + idle_s)


def wait_for_spent(scope: str, usd: float) -> None:
    """Wait for the settlement, which comes just after a run's result."""
    ledger = open_ledger()
    wait_until(lambda: ledger.spent_usd(scope) == pytest.approx(usd), f"spending ${usd}")


def test_a_cap_holds_when_the_client_is_killed(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    max_cost = cost_of(4)
    (tmp_path / "client.py").write_text(
        textwrap.dedent(f"""
            import os, signal
            from ml_experiments import ModalBackend, Observer, run_experiment
            from ml_experiments.backends.modal import app_pool, plan

            plan.MIN_RUN_S, plan.MIN_STARTUP_S = 1, {STARTUP_S}
            plan.IDLE_S = app_pool.IDLE_S = {IDLE_S}

            class Killer(Observer):
                def log(self, spec, data):
                    os.kill(os.getpid(), signal.SIGKILL)

            with ModalBackend() as backend:
                run_experiment("endless.py:run", backend=backend, observer=Killer(), gpu="t4",
                               max_cost={max_cost!r})
        """)
    )
    (tmp_path / "endless.py").write_text(
        textwrap.dedent("""
            import time

            def run():
                print("begun", flush=True)
                while True:
                    try:
                        time.sleep(1)
                    except BaseException:
                        pass
        """)
    )
    done = subprocess.run([sys.executable, "client.py"], cwd=tmp_path, timeout=WAIT_S, check=False)
    assert done.returncode == -9
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    function = function_of(modal_emulator, path.name)
    assert (function.timeout_s, function.startup_timeout_s) == (4, STARTUP_S)

    def running() -> list[int]:
        return [
            container.pid
            for container in modal_emulator.containers()
            if container.function_id == function.function_id and psutil.pid_exists(container.pid)
        ]

    [pid] = running()
    started_at = psutil.Process(pid).create_time()
    wait_until(lambda: not running(), "the end of the container")
    handed_out_s = time.time() - started_at
    assert handed_out_s >= 4
    assert handed_out_s * T4_USD_PER_S <= max_cost
    # its outcome isn't here, so all that was reserved counts
    assert open_ledger().spent_usd(f"run:{path.name}") == pytest.approx(max_cost)
    with ModalBackend() as backend:
        backend.attach(RunFolder(path), Recorder()).result(WAIT_S)
    assert open_ledger().spent_usd(f"run:{path.name}") <= max_cost


@pytest.mark.usefixtures("short_times")
def test_a_rerun_after_a_preemption_gets_no_time_of_its_own(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    modal_emulator.preempt_input(1, after_s=1, grace_s=20)
    result = run_experiment(
        Resumes,
        {"steps": 1000, "step_s": 0.1},
        backend=backend,
        observer=Recorder(),
        gpu="t4",
        max_cost=cost_of(6),
    )
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    assert "the 6 s that its cap allows were over by then" in result.error.message


def test_a_container_counts_from_the_first_start_of_the_run(runs_dir: Path) -> None:
    place = {"modal": ModalPlace()}
    folder = write_run(runs_dir, "20261125-120000-0000001", status=None, manifest=place)
    spec = dataclasses.replace(folder.read_spec(), timeout_s=100)
    assert with_time_left(spec, folder) == spec
    started_at = folder.read_manifest().modal.started_at  # type: ignore[union-attr]
    assert started_at == pytest.approx(time.time(), abs=10)
    again = with_time_left(spec, folder).timeout_s
    assert 80 < again < 100
    late = write_run(
        runs_dir,
        "20261125-120000-0000002",
        status=None,
        manifest={"modal": ModalPlace(started_at=time.time() - 200)},
    )
    assert with_time_left(spec, late).timeout_s == 0


def test_a_run_that_has_ended_is_settled_by_what_it_cost(
    backend: ModalBackend, runs_dir: Path
) -> None:
    recorder = Recorder()
    result = run_experiment(
        Greet, {}, backend=backend, observer=recorder, gpu="t4", max_cost=cost_of(600, 600, 60)
    )
    assert result.status is RunStatus.SUCCESS
    assert any("the timeout is 900 s instead of 14400 s" in text for text in recorder.notices)
    assert folder_of(result).read_spec().max_cost == cost_of(600, 600, 60)
    # the start of the container and its last wait count, with all the CPU and memory it could use
    assert result.cost["at_most_usd"] > T4_USD_PER_S * (60 + result.timings["total_s"])
    wait_for_spent(f"run:{result.run_id}", result.cost["at_most_usd"])


def test_a_cap_is_for_all_attempts_at_a_run(backend: ModalBackend) -> None:
    enough = cost_of(60, 60, 60)
    result = run_experiment(
        Fails, {"how": "odd"}, backend=backend, observer=Recorder(), gpu="t4", max_cost=enough
    )
    assert result.status is RunStatus.ERROR
    folder = folder_of(result)
    with pytest.raises(BudgetError, match=r"the cap of \$0\.08 is too low"):
        resume_run(folder, backend=backend, observer=Recorder())
    # nothing of the run was changed
    assert folder.read_result().to_dict() == result.to_dict()
    again = resume_run(folder, backend=backend, observer=Recorder(), max_cost=2 * enough)
    assert len(again.result(WAIT_S).attempts) == 2
    spec = folder.read_spec()
    assert spec.max_cost == 2 * enough
    spent = [attempt.at_most_usd for attempt in folder.read_result().attempts]
    total = sum(usd for usd in spent if usd is not None)
    wait_for_spent(f"run:{result.run_id}", total)


def test_a_run_without_money_for_a_larger_gpu_ends_with_its_own_error(
    backend: ModalBackend,
) -> None:
    recorder = Recorder()
    result = run_experiment(
        NeedsMemory,
        {"fits": []},
        backend=backend,
        observer=recorder,
        gpu="t4",
        escalate="l4",
        max_cost=cost_of(60, 60, 60),
    )
    assert result.error is not None
    assert result.error.kind is ErrorKind.CUDA_OOM
    assert [attempt.gpu for attempt in result.attempts] == ["T4"]
    assert folder_of(result).read_result() == result
    assert folder_of(result).read_spec().gpu == "t4"
    assert any("gets no further attempt: the cap of" in text for text in recorder.notices)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--max-cost", "0.05"),
            "is too low, for a run on t4 takes at least $0.08",
        ),
        (("--max-cost", "-1"), "max_cost: "),
        (("--max-cost", "nan"), "max_cost: "),
        (("--max-cost", "1e30"), "max_cost: "),
        (("--max-cost", "$5"), "'$5' is not a valid float"),
        (("--max-cost", "0.05", "--dry-run"), "the cap of $0.05 is too low"),
    ],
)
def test_the_command_refuses_a_cap_and_starts_nothing(
    modal_emulator: Emulator, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "quick.py").write_text("def train(): return 1\n")
    before = len(modal_emulator.apps())
    done = run_command(modal_emulator, tmp_path, "run", "quick.train", "--gpu", "t4", *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(modal_emulator.apps()) == before


def test_a_cap_on_this_machine_is_a_mistake() -> None:
    with LocalBackend() as backend, pytest.raises(ConfigError, match="cap for runs on Modal"):
        prepare_run(Greet, {}, backend=backend, max_cost=1.0)


def test_a_gpu_without_a_price_runs_only_without_a_cap(
    backend: ModalBackend, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(GPU_USD_PER_S, "l4")
    monkeypatch.setattr(prices, "cached_rates", lambda: None)
    prepared = prepare_run(Greet, {}, backend=backend, gpu="l4", max_cost=1.0)
    with pytest.raises(BudgetError, match="no price is known for l4 in the prices of 2026-10-01"):
        submit_run(prepared, backend=backend)
    result = run_experiment(Greet, {}, backend=backend, observer=Recorder(), gpu="l4")
    assert result.status is RunStatus.SUCCESS
    assert result.cost == {}
    forecast = prepared.forecast
    assert above_limit(forecast, "the sweep") is None
    monkeypatch.setenv("ML_EXPERIMENTS_ASK_ABOVE", "100")
    assert above_limit(forecast, "the sweep") == (
        "no price of the GPU type is known in the prices of 2026-10-01: the sweep may cost more "
        "than the $100.00 of ask_above"
    )


def test_the_cap_of_a_day_is_for_all_runs(
    backend: ModalBackend, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ML_EXPERIMENTS_MAX_COST_PER_DAY", "0.2")
    first, second = (prepare_run(Greet, {}, backend=backend, gpu="t4") for _ in range(2))
    [reserved] = reserve([first], backend, runs_dir)
    assert reserved.forecast.worst_case_usd == pytest.approx(0.2, abs=2 * T4_USD_PER_S)
    with pytest.raises(BudgetError, match=r"the day's cap of \$0\.20 is too low"):
        submit_run(second, backend=backend)


def test_points_of_a_sweep_share_one_budget(backend: ModalBackend, runs_dir: Path) -> None:
    points = [prepare_run(Greet, {}, backend=backend, gpu="t4") for _ in range(3)]
    budget = Budget("sweep:s1", 1.0)
    reserved = reserve(points, backend, runs_dir, budget=budget)
    assert [point.reservation.usd for point in reserved] == pytest.approx([1 / 3] * 3)
    # equal timeouts: they can share warm containers
    assert len({point.plan.timeout_s for point in reserved}) == 1
    assert open_ledger().spent_usd("sweep:s1") == pytest.approx(1.0)
    handle = submit_run(reserved[0], backend=backend, observer=Recorder())
    assert handle.result(WAIT_S).status is RunStatus.SUCCESS
    wait_until(lambda: open_ledger().spent_usd("sweep:s1") < 0.7, "the settlement")


def test_a_run_that_could_not_be_submitted_gives_its_reservation_back(
    backend: ModalBackend, runs_dir: Path
) -> None:
    [reserved] = reserve([prepare_run(Greet, {}, backend=backend, gpu="t4")], backend, runs_dir)
    (runs_dir / reserved.spec.run_id).mkdir()
    (runs_dir / reserved.spec.run_id / "spec.json").touch()  # in the way
    with pytest.raises(Exception, match=r"a run folder .* already"):
        submit_run(reserved, backend=backend)
    assert open_ledger().spent_usd(f"run:{reserved.spec.run_id}") == 0


def test_a_damaged_ledger_stops_runs_with_a_cap_only(
    backend: ModalBackend, runs_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = open_ledger().file
    file.parent.mkdir(parents=True)
    file.write_text("damaged")
    prepared = prepare_run(Greet, {}, backend=backend, gpu="t4")
    capped = dataclasses.replace(prepared, spec=dataclasses.replace(prepared.spec, max_cost=1.0))
    with pytest.raises(BudgetError, match="is damaged"):
        reserve([capped], backend, runs_dir)
    assert reserve([prepared], backend, runs_dir) == (prepared,)
    assert "what the run may cost is not reserved" in caplog.text


def test_ask_above_asks_only_where_there_is_a_terminal(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "quick.py").write_text("def train(): return 1\n")
    (tmp_path / "pyproject.toml").write_text("[tool.ml-experiments]\nask_above = 0.5\n")
    command = ("run", "quick.train", "--gpu", "t4")
    done = run_command(modal_emulator, tmp_path, *command)
    assert done.returncode == 2
    assert "which is above the $0.50 of ask_above, and nobody was asked; --yes" in done.stderr
    assert run_command(modal_emulator, tmp_path, *command, "--yes").returncode == 0


def test_what_an_attempt_cost_is_read_from_its_folder(runs_dir: Path) -> None:
    write_run(runs_dir, "20261125-120000-0000001")
    # it was never handed over to Modal
    assert read_spent(runs_dir, "20261125-120000-0000001", 1) == 0
    assert read_spent(runs_dir, "20261125-120000-0000001", 2) is None
    assert read_spent(runs_dir, "no-such-run", 1) is None


def test_a_run_that_modal_did_not_take_costs_nothing(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    modal_emulator.fail_rpc("FunctionMap", status="INVALID_ARGUMENT")
    prepared = prepare_run(Greet, {}, backend=backend, gpu="t4", max_cost=2.0)
    with pytest.raises(BackendError, match="start the run"):
        submit_run(prepared, backend=backend).result()
    assert open_ledger().spent_usd(f"run:{prepared.spec.run_id}") == 0


def test_a_run_that_goes_on_on_modal_stays_within_its_cap(modal_emulator: Emulator) -> None:
    config = {"fits": ["T4"], "message": "CUDA out of memory."}
    asked: dict[str, Any] = {"observer": Recorder(), "escalate_to": "t4"}
    cap = cost_of(600, 600, 60)  # much less than the four hours of a run without one
    result = run_experiment(NeedsMemory, config, max_cost=cap, **asked)
    assert result.status is RunStatus.SUCCESS, result.error
    assert [attempt.gpu for attempt in result.attempts][1:] == ["T4"]
    function = function_of(modal_emulator, result.run_id)
    assert T4_USD_PER_S * (function.timeout_s + 60) < cap
    assert result.cost["worst_case_usd"] <= cap * (1 + 1e-9)
    wait_for_spent(f"run:{result.run_id}", sum(a.at_most_usd or 0.0 for a in result.attempts))


def test_a_cap_with_no_room_for_modal_leaves_the_run_as_it_ended_here(
    modal_emulator: Emulator, runs_dir: Path
) -> None:
    recorder = Recorder()
    result = run_experiment(
        NeedsMemory,
        {"fits": [], "message": "CUDA out of memory."},
        observer=recorder,
        escalate_to="t4",
        max_cost=0.0001,
    )
    assert any("gets no further attempt: the cap of $0.0001" in text for text in recorder.notices)
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    folder = RunFolder(path)
    assert folder.outcome().status is RunStatus.ERROR
    assert [attempt.kind for attempt in result.attempts] == [ErrorKind.CUDA_OOM]
    assert folder.read_spec().backend == "local"
