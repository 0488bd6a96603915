"""Single runs whose attempts a container on Modal makes, as commands."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_experiments import ModalBackend, load_run, prepare_run
from ml_experiments.backends.modal.detached.volume_folder import list_folders, read_file
from ml_experiments.backends.modal.plan import IDLE_S
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import open_ledger
from ml_experiments.runner.detached import allowance
from ml_experiments.runner.detached.on_modal import start_run_on_modal
from ml_experiments.runs.folder import RunFolder
from modal_emulator import Emulator
from modal_emulator.control.info import ContainerInfo
from modal_emulator.scheduling.crashes import MAX_CRASHES
from tests.support.modal_runs import (
    WAIT_S,
    handed_out_usd,
    most_usd_of_controller,
    most_usd_per_s_on,
    run_command,
    start_command,
)
from tests.support.waiting import wait_until

LARGE = """
import os, socket
from near_by import say
from ml_experiments import current_run

def large(port: int, fits: str = "L4"):
    gpu = os.environ["MODAL_EMULATOR_GPU"]
    with socket.create_connection(("127.0.0.1", port)) as test:
        say(gpu)
        test.sendall(gpu.encode())
        test.recv(1)  # until the test lets it go on
    if gpu != fits:
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    (current_run().output_dir / "gpu.txt").write_text(gpu)
    return {"gpu": gpu}
"""


class Gate:
    """Meets attempts at runs, which wait until they are let go on."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self.port = server.getsockname()[1]

    def meet(self) -> tuple[str, socket.socket]:
        """Wait for the next attempt; return its GPU, and the connection that holds it."""
        connection, _ = self._server.accept()
        connection.settimeout(WAIT_S)
        return connection.recv(100).decode(), connection

    def has_more(self) -> bool:
        """Return whether there is an attempt that nobody has met."""
        return bool(select.select([self._server], [], [], 0)[0])


@pytest.fixture
def gate() -> Iterator[Gate]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WAIT_S)
        yield Gate(server)


class Commands:
    """Runs `ml-experiments …` in the folder of a project."""

    def __init__(self, emulator: Emulator, project: Path) -> None:
        self.emulator, self.project = emulator, project

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done = run_command(self.emulator, self.project, *arguments)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def detach(self, gate: Gate, *options: str) -> RunFolder:
        arguments = ("run", "mine.large", f"port={gate.port}", "--gpu", "t4", *options)
        stdout = run_command(self.emulator, self.project, *arguments, "--detach", "--json").stdout
        return RunFolder(Path(json.loads(stdout)["run_dir"]))


@pytest.fixture
def call(modal_emulator: Emulator, tmp_path: Path) -> Commands:
    (tmp_path / "mine.py").write_text(LARGE)
    (tmp_path / "near_by.py").write_text("def say(gpu):\n    print('on', gpu, flush=True)\n")
    return Commands(modal_emulator, tmp_path)


def kill_all_here(runs_dir: Path) -> None:
    """Kill every process of this machine that has to do with a runs folder, but for this one."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = process.environ().get("ML_EXPERIMENTS_RUNS_DIR") == str(runs_dir)
            if is_ours and process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)


def containers(emulator: Emulator, function: str) -> list[ContainerInfo]:
    return [
        each
        for each in emulator.containers()
        if each.function_name == function and each.running_input_ids
    ]


def end_controller(emulator: Emulator, fault: str) -> None:
    """Take the container of a controller away; return once there is another one."""
    [lost] = containers(emulator, "control_run")
    getattr(emulator, fault)(lost.task_id)

    def is_replaced() -> bool:
        return any(each.task_id != lost.task_id for each in containers(emulator, "control_run"))

    wait_until(is_replaced, "another controller")


def gpus(run_id: str) -> list[str | None]:
    return [attempt.gpu for attempt in load_run(run_id).attempts]


def test_a_run_climbs_though_all_processes_here_are_killed(
    call: Commands, gate: Gate, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = call.detach(gate, "--escalate", "l4", "--run-id", "climbs")
    kill_all_here(runs_dir)
    gpu, held = gate.meet()
    assert gpu == "T4"
    held.send(b"x")
    gpu, held = gate.meet()
    assert gpu == "L4"

    # it goes on
    assert folder.outcome().status == "pending"
    assert json.loads(call("runs", "list", "--json"))[0]["status"] == "pending"
    for force in ((), ("--force",)):
        assert "goes on in a container on Modal" in call("runs", "resume", "climbs", *force, code=2)
    assert "it is pending" in call("runs", "rm", "climbs", "--from", "both", "--yes", code=1)
    elsewhere = runs_dir.with_name(f"{runs_dir.name}-elsewhere")

    def has_started_there() -> bool:
        manifest = json.loads(read_file("climbs/manifest.json") or b"{}")
        return manifest.get("attempt") == 2 and "process" in manifest

    wait_until(has_started_there, "the commit of the second attempt's start")
    with monkeypatch.context() as patch:
        patch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(elsewhere))
        assert "climbs  running" in call("runs", "sync")
        assert RunFolder(elsewhere / "climbs").outcome().status == "running"
    held.send(b"x")

    # it has ended
    def listed() -> str:
        rows: list[dict[str, Any]] = json.loads(
            run_command(call.emulator, call.project, "runs", "list", "--json").stdout
        )
        return str(rows[0]["status"])

    wait_until(lambda: listed() == "success", "the end of the run")
    assert "climbs  success" in call("runs", "sync")
    result = load_run("climbs")
    assert (result.results, gpus("climbs")) == ({"gpu": "L4"}, ["T4", "L4"])
    assert all(attempt.cost_usd for attempt in result.attempts)
    assert folder.read_spec().gpu == "l4"
    (folder.artifacts_dir / "gpu.txt").unlink()
    call("runs", "pull", "climbs")
    assert (folder.artifacts_dir / "gpu.txt").read_text() == "L4"
    log = folder.log_file.read_text()
    assert log.index("on T4") < log.index("--- attempt 2") < log.index("on L4")
    with monkeypatch.context() as patch:
        patch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(elsewhere))
        assert "climbs  success\n" in call("runs", "wait", "climbs")
        there = load_run("climbs").to_dict()
    assert {**there, "run_dir": None, "experiment_class": None} == {
        **result.to_dict(),
        "run_dir": None,
        "experiment_class": None,
    }
    call("runs", "rm", "climbs", "--from", "both", "--yes")
    assert "climbs" not in list_folders(".runs") + list_folders("")


def test_a_run_is_followed_and_cancelled_from_any_terminal(
    call: Commands, gate: Gate, modal_emulator: Emulator, runs_dir: Path
) -> None:
    folder = call.detach(gate, "--escalate", "l4", "--run-id", "followed")
    _, held = gate.meet()
    again = ("mine.large", f"port={gate.port}", "--gpu", "t4", "--escalate", "l4")
    assert "runs follow followed" in call("run", *again, "--run-id", "followed", "--detach")
    commands = (
        ("runs", "follow", "followed"),
        ("runs", "logs", "-f", "followed"),
        ("run", *again, "--run-id", "followed"),
        ("runs", "wait", "followed"),
    )
    processes = [start_command(modal_emulator, call.project, *each) for each in commands]
    outputs = [process.stdout for process in processes[:3] if process.stdout is not None]
    for output in outputs:
        assert "on T4\n" in iter(output.readline, "")
    held.send(b"x")
    _, held = gate.meet()
    for output in outputs:
        assert "on L4\n" in iter(output.readline, "")
    assert "followed  cancelled\n" in call("runs", "cancel", "followed")
    assert held.recv(1) == b""  # its container has let go
    for process, code in zip(processes, (130, 0, 130, 130), strict=True):
        rest, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == code, rest + errors
    assert folder.read_result().status == "cancelled"
    assert [a.status for a in folder.read_result().attempts] == ["error", "cancelled"]
    for function in ("control_run", "run_remote"):
        wait_until(lambda f=function: not containers(modal_emulator, f), "the end of the container")  # type: ignore[misc]


def test_a_controller_that_modal_ends_after_its_day_is_replaced(
    call: Commands, gate: Gate, modal_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(call.project)
    monkeypatch.setattr(allowance, "MAX_TIMEOUT_S", 12)  # instead of 24 h
    config = {"port": gate.port}
    with ModalBackend() as backend:
        prepared = prepare_run("mine.large", config, backend=backend, gpu="t4", escalate="l4")
        folder = start_run_on_modal(prepared, print)
    _, held = gate.meet()
    [first] = containers(modal_emulator, "control_run")

    def is_replaced() -> bool:
        now = containers(modal_emulator, "control_run")
        return any(each.task_id != first.task_id for each in now)

    wait_until(is_replaced, "another controller")
    held.send(b"x")
    gpu, held = gate.meet()
    assert gpu == "L4"
    held.send(b"x")
    call("runs", "follow", folder.path.name)
    assert gpus(folder.path.name) == ["T4", "L4"]
    assert not gate.has_more()


def test_a_lost_container_is_replaced_though_all_processes_here_are_killed(
    call: Commands, gate: Gate, modal_emulator: Emulator, runs_dir: Path
) -> None:
    folder = call.detach(gate, "fits=T4", "--retries", "1")
    kill_all_here(runs_dir)
    for _ in range(MAX_CRASHES):  # until then, Modal itself replaces it
        gate.meet()
        [container] = containers(modal_emulator, "run_remote")
        modal_emulator.kill(container.task_id)
    _, held = gate.meet()
    held.send(b"x")
    call("runs", "follow", folder.path.name)
    *_, lost, last = folder.read_result().attempts
    assert lost.error is not None
    assert (lost.error.type, last.status) == ("InternalFailure", "success")


@pytest.mark.parametrize("fault", ["kill", "preempt"])
def test_a_controller_that_is_lost_is_replaced_and_no_attempt_is_made_twice(
    call: Commands, gate: Gate, modal_emulator: Emulator, fault: str
) -> None:
    run_id = call.detach(gate, "--escalate", "l4").path.name
    place = f".runs/{run_id}/{run_id}"
    for attempt, expected in enumerate(("T4", "L4"), 1):
        gpu, held = gate.meet()
        assert gpu == expected
        ours = {"attempt": attempt}

        def is_stored(ours: dict[str, int] = ours) -> bool:
            manifest = json.loads(read_file(f"{place}/manifest.json") or b"{}")
            has_call = "function_call_id" in manifest.get("modal", {})
            is_gone = read_file(f"{place}/result.json") is None  # that of the attempt before
            return has_call and is_gone and bool(manifest["attempt"] == ours["attempt"])

        wait_until(is_stored, "the attempt on the volume")
        end_controller(modal_emulator, fault)
        held.send(b"x")
    call("runs", "wait", run_id)
    assert gpus(run_id) == ["T4", "L4"]
    assert not gate.has_more()


def test_a_cap_holds_where_the_attempts_are_made(
    call: Commands, gate: Gate, modal_emulator: Emulator, runs_dir: Path
) -> None:
    max_cost = 900 * most_usd_per_s_on("l4")
    folder = call.detach(
        gate, "--escalate", "l4", "--max-cost", str(max_cost), "--run-id", "capped"
    )
    kill_all_here(runs_dir)
    _, held = gate.meet()
    assert open_ledger().spent_usd("run:capped") == pytest.approx(max_cost)  # all of it is reserved
    end_controller(modal_emulator, "kill")
    held.send(b"x")
    _, held = gate.meet()
    begun = [f for f in modal_emulator.functions("run_remote") if f.app_name.endswith("capped")]
    limits = {f.gpus[0]: f.startup_timeout_s + f.timeout_s + IDLE_S for f in begun}
    own_usd = most_usd_of_controller(modal_emulator, "control_run", "capped")
    assert limits["T4"] * most_usd_per_s_on("t4") + own_usd < max_cost * (1 + 1e-6)
    assert limits["L4"] * most_usd_per_s_on("l4") + own_usd < max_cost
    held.send(b"x")
    assert "capped  success" in call("runs", "wait", "capped")
    assert folder.read_spec().max_cost == max_cost

    # what the server has handed out, to the controllers too, is no more than what counts
    ids = {f.function_id for f in begun}
    ids |= {
        f.function_id for f in modal_emulator.functions("control_run") if "capped" in f.app_name
    }
    ours = [each for each in modal_emulator.containers() if each.function_id in ids]
    assert len(ours) == 4
    counted_usd = open_ledger().spent_usd("run:capped")
    assert handed_out_usd(ours) <= counted_usd < max_cost / 2
    assert folder.read_result().cost["controller_usd"] > 0


def test_a_cap_with_no_room_for_a_controller_starts_nothing(call: Commands, gate: Gate) -> None:
    config = (f"port={gate.port}", "fits=T4")
    arguments = ("run", "mine.large", *config, "--gpu", "t4", "--retries", "1")
    said = call(*arguments, "--max-cost", "0.01", "--detach", code=2)
    assert "the cap of $0.01 is too low, for what runs on t4, controlled on Modal, takes" in said
    assert call("runs", "list", "--json").strip() == "[]"
    said = call(*arguments, "--max-cost", "5", "--detach")
    assert "$5.00 of the cap is reserved until its outcome is here" in said
    _, held = gate.meet()
    held.send(b"x")
    call("runs", "wait", "last")


def test_a_controller_whose_call_was_not_noted_is_found_on_the_volume(
    call: Commands, gate: Gate, runs_dir: Path
) -> None:
    folder = call.detach(gate, "--escalate", "l4", "--run-id", "unnoted")
    kill_all_here(runs_dir)
    controller = folder.read_manifest().controller
    assert controller is not None
    unnoted = dataclasses.replace(folder.read_manifest(), controller=None)
    folder.write_manifest(unnoted, Redactor(()))  # what a kill before that leaves
    _, held = gate.meet()
    assert folder.outcome().status == "pending"
    arguments = ("runs", "wait", "unnoted")
    with start_command(call.emulator, call.project, *arguments) as waiting:
        wait_until(lambda: folder.read_manifest().controller == controller, "the controller")
        held.send(b"x")
        _, held = gate.meet()
        held.send(b"x")
        assert waiting.wait(WAIT_S) == 0
    assert gpus("unnoted") == ["T4", "L4"]
