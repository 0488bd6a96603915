"""Calls: spawned, gathered, cancelled, retried."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Iterator

import emulated_calls as calls
import modal
import pytest
from modal.exception import (
    InputCancellation,
    RemoteError,
)

from modal_emulator import Emulator
from tests.support.waiting import wait_until


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with calls.app.run():
        yield


def in_another_process(code: str, *arguments: str) -> str:
    """Run Python against the same server and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def wait_for_start(key: str) -> None:
    wait_until(lambda: calls.counter.get(key) == "started", "the start of the input")


def test_spawned_calls_are_gathered() -> None:
    spawned = [calls.square.spawn(x) for x in (2, 3)]
    assert modal.FunctionCall.gather(*spawned) == [4, 9]


def test_get_with_a_timeout_raises_until_the_result_is_there() -> None:
    call = calls.sleep.spawn(1.5, "slept")
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    assert call.get() == "slept"
    # Results of spawned calls can be read again.
    assert call.get() == "slept"


def test_another_process_gets_a_result_by_call_id() -> None:
    call = calls.square.spawn(12)
    code = "import modal, sys; print(modal.FunctionCall.from_id(sys.argv[1]).get())"
    assert in_another_process(code, call.object_id) == "144"


def test_another_process_cancels_a_call() -> None:
    key = uuid.uuid4().hex
    call = calls.sleep_async.spawn(key)
    wait_for_start(key)
    in_another_process(
        "import modal, sys; modal.FunctionCall.from_id(sys.argv[1]).cancel()", call.object_id
    )
    with pytest.raises(RemoteError, match="cancelled"):
        call.get(timeout=30)
    assert calls.counter[key] == "cancelled"


def test_a_cancelled_sync_input_stops_and_its_container_goes_on() -> None:
    call = calls.sleep.spawn(60, "never")
    waiting = calls.sleep.spawn(0, "next")
    call.cancel()
    with pytest.raises(RemoteError, match="cancelled"):
        call.get(timeout=30)
    assert waiting.get(timeout=30) == "next"
    assert issubclass(InputCancellation, BaseException)


def test_cancel_with_terminate_containers_kills_the_container(modal_emulator: Emulator) -> None:
    call = calls.sleep.spawn(60, "never")

    def runs() -> bool:
        found = [each for each in modal_emulator.calls() if each.call_id == call.object_id]
        return bool(found[0].inputs[0].task_id)

    wait_until(runs, "the start of the input")
    call.cancel(terminate_containers=True)
    with pytest.raises(RemoteError, match="cancelled"):
        call.get(timeout=30)
    ends = [each.end_reason for each in modal_emulator.containers()]
    assert "cancelled" in ends


def test_retries_run_the_input_again(modal_emulator: Emulator) -> None:
    assert calls.fail_until.remote(3, uuid.uuid4().hex) == 3
    assert modal_emulator.calls("fail_until")[-1].inputs[0].attempts == 3


def test_retries_end_with_the_last_exception() -> None:
    with pytest.raises(RuntimeError, match="attempt 3"):
        calls.fail_until.remote(9, uuid.uuid4().hex)


def test_retries_work_in_a_map() -> None:
    keys = [uuid.uuid4().hex for _ in range(3)]
    assert list(calls.fail_until.starmap([(2, key) for key in keys])) == [2, 2, 2]


def test_an_unknown_call_id_is_not_found() -> None:
    with pytest.raises(modal.exception.NotFoundError, match="fc-doesnotexist"):
        modal.FunctionCall.from_id("fc-doesnotexist").get(timeout=0)
