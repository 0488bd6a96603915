"""Faults on demand."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import disturbed_app as disturbed
import modal
import pytest
from modal.exception import PermissionDeniedError

from modal_emulator import Emulator
from modal_emulator.control.control import ContainerNotFoundError
from tests.support.emulator_command import request
from tests.support.waiting import wait_until


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with disturbed.app.run():
        yield


@pytest.fixture
def key() -> str:
    return uuid.uuid4().hex


def input_of(emulator: Emulator, call: modal.FunctionCall[Any]) -> Any:
    return next(each for each in emulator.calls() if each.call_id == call.object_id).inputs[0]


def wait_for_start(emulator: Emulator, call: modal.FunctionCall[Any]) -> str:
    wait_until(lambda: input_of(emulator, call).task_id, "the start of the input")
    return str(input_of(emulator, call).task_id)


def test_a_preempted_input_runs_again_and_finds_what_it_saved(
    modal_emulator: Emulator, key: str
) -> None:
    earlier = {each.task_id for each in modal_emulator.containers()}
    modal_emulator.preempt_input(1, after_s=1.5, grace_s=20)
    found = disturbed.resume.remote(60, key)
    assert 0 < found["started_at"] < 60
    assert disturbed.events.get(timeout=30) == f"interrupted {key}"
    preempted = [
        each
        for each in modal_emulator.containers()
        if each.end_reason == "preempted" and each.task_id not in earlier
    ]
    assert found["task_id"] not in [each.task_id for each in preempted]
    assert len(preempted) == 1


@pytest.mark.slow
def test_a_preempted_container_that_goes_on_is_killed_after_the_grace(
    modal_emulator: Emulator, key: str
) -> None:
    call = disturbed.ignore_interrupts.spawn(3, key)
    first = wait_for_start(modal_emulator, call)
    time.sleep(0.3)
    assert modal_emulator.preempt(first, grace_s=0.5) == [first]
    assert call.get(timeout=60) != first
    assert disturbed.events.get(timeout=30) == f"ignored {key}"


def test_a_preemption_is_not_one_of_the_retries(modal_emulator: Emulator) -> None:
    modal_emulator.preempt_input(1, after_s=0.3, grace_s=5)
    call = disturbed.nap_with_retry.spawn(1)
    call.get(timeout=60)
    found = input_of(modal_emulator, call)
    assert (found.attempts, found.starts) == (1, 2)


def test_the_input_of_a_killed_container_runs_again_apart_from_the_retries(
    modal_emulator: Emulator,
) -> None:
    for function in (disturbed.nap, disturbed.nap_with_retry):
        modal_emulator.kill_input(1, after_s=0.2)
        call = function.spawn(1)
        call.get(timeout=60)
        found = input_of(modal_emulator, call)
        assert (found.attempts, found.starts, found.status) == (1, 2, "success")
    logs = "".join(each.text for each in modal_emulator.logs(str(disturbed.app.app_id)))
    assert "of nap was killed by SIGKILL while it ran an input.\n" in logs


def test_every_busy_container_is_killed_without_a_task_id(modal_emulator: Emulator) -> None:
    nap = disturbed.nap.with_options(memory=301)
    calls = [nap.spawn(60) for _ in range(2)]
    started = {wait_for_start(modal_emulator, call) for call in calls}
    assert set(modal_emulator.kill()) == started
    for call in calls:
        call.cancel(terminate_containers=True)
        with pytest.raises(modal.exception.RemoteError):
            call.get(timeout=60)


def test_there_must_be_a_container_to_disturb(modal_emulator: Emulator) -> None:
    with pytest.raises(ContainerNotFoundError, match="ta-none"):
        modal_emulator.kill("ta-none")


def test_starts_can_be_delayed(modal_emulator: Emulator) -> None:
    modal_emulator.delay_starts(1.5)
    started = time.monotonic()
    disturbed.nap.with_options(memory=300).remote(0)
    assert time.monotonic() - started > 1.5


def test_a_failing_rpc_that_the_client_retries_goes_unnoticed(modal_emulator: Emulator) -> None:
    modal_emulator.fail_rpc("FunctionMap", nth=1, status="UNAVAILABLE")
    before = len(modal_emulator.calls("nap"))
    disturbed.nap.remote(0)
    assert len(modal_emulator.calls("nap")) == before + 1


def test_the_nth_call_of_an_rpc_fails_with_its_status(modal_emulator: Emulator) -> None:
    modal_emulator.fail_rpc("FunctionMap", nth=2, status="PERMISSION_DENIED")
    disturbed.nap.remote(0)
    with pytest.raises(PermissionDeniedError, match="FunctionMap failed on demand"):
        disturbed.nap.remote(0)
    disturbed.nap.remote(0)


def test_an_rpc_can_be_slow(modal_emulator: Emulator) -> None:
    modal_emulator.delay_rpc("FunctionMap", 1.5)
    started = time.monotonic()
    disturbed.nap.remote(0)
    assert time.monotonic() - started > 1.5
    modal_emulator.delay_rpc("FunctionMap", 0)
    started = time.monotonic()
    disturbed.nap.remote(0)
    assert time.monotonic() - started < 1.5


def test_faults_that_make_no_sense_are_refused(modal_emulator: Emulator) -> None:
    with pytest.raises(ValueError, match='"FunctionMup" is not an RPC'):
        modal_emulator.fail_rpc("FunctionMup")
    with pytest.raises(ValueError, match='"BROKEN" is not a gRPC status'):
        modal_emulator.fail_rpc("FunctionMap", status="BROKEN")
    with pytest.raises(ValueError, match="not a GPU type"):
        modal_emulator.limit_gpu("H1000", 0)
    with pytest.raises(ValueError, match='"FunctionMup" is not an RPC'):
        modal_emulator.delay_rpc("FunctionMup", 1)


@pytest.mark.parametrize("number", [-1, 1.5, "x", True])
@pytest.mark.parametrize(
    ("action", "arguments", "argument", "message"),
    [
        ("limit_gpu", {"name": "H100"}, "count", "A GPU capacity is a whole number of 0"),
        ("limit_volume", {"name": "v"}, "max_bytes", "A volume's max_bytes is a whole number of 0"),
        ("limit_volume", {"name": "v"}, "max_files", "A volume's max_files is a whole number of 0"),
        ("fail_rpc", {"name": "FunctionMap"}, "nth", "an RPC is a whole number of 1"),
        ("preempt_input", {}, "nth", "an input is a whole number of 1"),
        ("kill_input", {}, "nth", "an input is a whole number of 1"),
    ],
)
def test_what_a_fault_counts_is_a_whole_number(
    modal_emulator: Emulator,
    action: str,
    arguments: dict[str, Any],
    argument: str,
    message: str,
    number: object,
) -> None:
    refused = {**arguments, argument: number}
    with pytest.raises(ValueError, match=rf"{message} or more, not {number!r}\."):
        getattr(modal_emulator, action)(**refused)
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        request(modal_emulator, action, refused)
    assert f"{message} or more, not {number!r}." in caught.value.read().decode()


@pytest.mark.parametrize("seconds", [-1, "x", True, float("inf"), float("nan"), None])
@pytest.mark.parametrize(
    ("action", "arguments", "argument"),
    [
        ("delay_starts", {}, "seconds"),
        ("delay_rpc", {"name": "FunctionMap"}, "seconds"),
        ("preempt_input", {}, "after_s"),
        ("preempt_input", {}, "grace_s"),
        ("preempt", {}, "grace_s"),
        ("kill_input", {}, "after_s"),
    ],
)
def test_the_times_of_a_fault_are_numbers(
    modal_emulator: Emulator,
    action: str,
    arguments: dict[str, Any],
    argument: str,
    seconds: object,
) -> None:
    refused = {**arguments, argument: seconds}
    message = f"a number of 0 seconds or more, not {seconds!r}."
    with pytest.raises(ValueError, match=message):
        getattr(modal_emulator, action)(**refused)
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        request(modal_emulator, action, refused)
    assert message in caught.value.read().decode()


def test_the_name_of_what_is_limited_is_a_string(modal_emulator: Emulator) -> None:
    for action, arguments, message in (
        ("limit_gpu", {"name": 5, "count": 0}, '"5" is not a GPU type'),
        ("limit_volume", {"name": 5, "max_bytes": 0}, "A volume's name is a string, not 5."),
    ):
        with pytest.raises(urllib.error.HTTPError, match="400") as caught:
            request(modal_emulator, action, arguments)
        assert message in caught.value.read().decode()


def test_without_capacity_the_next_gpu_of_the_list_is_taken(modal_emulator: Emulator) -> None:
    variants = [disturbed.on_gpu.with_options(timeout=100 + i) for i in range(3)]
    assert variants[0].remote() == "H200"
    # One is left, and two are asked for.
    modal_emulator.limit_gpu("H200", 3)
    assert variants[1].remote() == "L40S"
    modal_emulator.limit_gpu("H200", 0)
    modal_emulator.limit_gpu("L40S", 0)
    assert variants[2].remote() == "T4"


def test_without_any_capacity_a_call_waits_until_there_is_some(modal_emulator: Emulator) -> None:
    modal_emulator.limit_gpu("B200", 0)
    call = disturbed.nap.with_options(gpu="B200+").spawn(0)
    with pytest.raises(TimeoutError):
        call.get(timeout=1)
    modal_emulator.limit_gpu("B200", 1)
    assert call.get(timeout=60)


def test_a_call_that_waits_for_a_gpu_says_so_once_in_its_logs(modal_emulator: Emulator) -> None:
    modal_emulator.limit_gpu("H200", 0)
    modal_emulator.limit_gpu("T4", 0)
    function = disturbed.nap.with_options(gpu="T4")
    message = "nap is waiting for a T4: none is free.\n"
    calls = [function.spawn(0), function.spawn(0)]
    for call in calls:
        first = next(iter(call.logs.stream(timeout=60)))
        assert (first.message, first.source) == (message, "system")
    # Every change of capacity looks at the queue again.
    modal_emulator.limit_gpu("H200", 1)
    texts = [line.text for line in modal_emulator.logs(disturbed.app.app_id or "")]
    assert texts.count(message) == len(calls)
    for call in calls:
        call.cancel()


def test_a_call_that_waits_names_every_gpu_that_it_would_take(modal_emulator: Emulator) -> None:
    for name in ("H200", "L40S", "T4"):
        modal_emulator.limit_gpu(name, 0)
    call = disturbed.on_gpu.with_options(timeout=300).spawn()
    first = next(iter(call.logs.stream(timeout=60)))
    wanted = "2 H200 or an L40S or a T4"
    assert first.message == f"on_gpu is waiting for {wanted}: too few are free.\n"
    call.cancel()


def test_a_full_volume_is_an_error_of_the_write(modal_emulator: Emulator) -> None:
    modal_emulator.limit_volume("disturbed", max_bytes=100_000)
    with pytest.raises(OSError, match="No space left on device"):
        disturbed.fill.with_options(timeout=201).remote(1_000_000)
    modal_emulator.clear_faults()
    assert disturbed.fill.with_options(timeout=202).remote(1_000_000) == 1_000_000


def test_image_builds_can_fail_with_a_message(modal_emulator: Emulator) -> None:
    modal_emulator.fail_image_builds("No matching distribution found for torhc")
    app = modal.App("no-image", image=modal.Image.debian_slim().pip_install("torhc"))
    app.function(serialized=True)(len)
    with pytest.raises(modal.exception.Error, match="No matching distribution"), app.run():
        pytest.fail("the app ran")
