"""Apps end with their clients."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import modal
import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import MODAL_APPS, app_of_call, app_state, input_runs
from tests.support.waiting import wait_until

RunModal = Callable[..., "subprocess.CompletedProcess[str]"]
APP = "deployed_app.py"


@pytest.mark.slow
def test_a_client_without_heartbeats_is_gone_though_connected(tmp_path: Path) -> None:
    with Emulator(heartbeat_limit_s=3.0) as emulator:
        process = subprocess.Popen(
            [sys.executable, "-m", "modal", "run", f"{APP}::sleep_long"],
            env={**os.environ, **emulator.environment, "MODAL_HEARTBEAT_INTERVAL": "0.3"},
            cwd=MODAL_APPS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: input_runs(emulator, "sleep"), "the start of the input")
            process.send_signal(signal.SIGSTOP)
            app_id = app_of_call(emulator, "sleep")
            wait_until(lambda: app_state(emulator, app_id) == "stopped", "the end of the app")
        finally:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_detached_app_goes_on_until_its_calls_end(
    run_modal: RunModal, modal_emulator: Emulator
) -> None:
    done = run_modal("run", "--detach", f"{APP}::spawn_and_leave", "--seconds", "2")
    call_id = re.search(r"call: (fc-\w+)", done.stdout)
    assert call_id is not None
    assert modal.FunctionCall.from_id(call_id[1]).get(timeout=60) == "slept"
    app_id = app_of_call(modal_emulator, "sleep")
    wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")


def test_an_app_that_is_not_detached_ends_with_its_entrypoint(
    run_modal: RunModal,
) -> None:
    done = run_modal("run", f"{APP}::spawn_and_leave", "--seconds", "600")
    call_id = re.search(r"call: (fc-\w+)", done.stdout)
    assert call_id is not None
    with pytest.raises(modal.exception.RemoteError, match="stopped"):
        modal.FunctionCall.from_id(call_id[1]).get(timeout=30)


def test_ctrl_c_stops_the_app(
    start_modal: Callable[..., subprocess.Popen[str]], modal_emulator: Emulator
) -> None:
    before = len(modal_emulator.calls("sleep"))
    process = start_modal("run", f"{APP}::sleep_long")
    wait_until(
        lambda: len(modal_emulator.calls("sleep")) > before and input_runs(modal_emulator, "sleep"),
        "the start of the input",
    )
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    app_id = app_of_call(modal_emulator, "sleep")
    wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")
    assert modal_emulator.calls("sleep")[-1].inputs[0].status == "terminated"


@pytest.mark.slow
@pytest.mark.parametrize("detached", [False, True])
def test_a_killed_client_ends_its_app_unless_detached(
    detached: bool,
    start_modal: Callable[..., subprocess.Popen[str]],
    modal_emulator: Emulator,
) -> None:
    before = len(modal_emulator.calls("sleep"))
    options = ["--detach"] if detached else []
    process = start_modal("run", *options, f"{APP}::sleep_long")
    wait_until(
        lambda: len(modal_emulator.calls("sleep")) > before and input_runs(modal_emulator, "sleep"),
        "the start of the input",
    )
    app_id = app_of_call(modal_emulator, "sleep")
    process.kill()
    ended = ("detached_disconnected",) if detached else ("stopped",)
    wait_until(lambda: app_state(modal_emulator, app_id) in ended, f"the state {ended}")
    if detached:
        assert modal_emulator.calls("sleep")[-1].inputs[0].status == ""
        modal.FunctionCall.from_id(modal_emulator.calls("sleep")[-1].call_id).cancel()
        wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")
