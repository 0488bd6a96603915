"""Calls, results, retries, timeouts, cancellation, as Modal documents them."""

from __future__ import annotations

import time
from types import ModuleType

import modal
import pytest
from modal.exception import FunctionTimeoutError, OutputExpiredError, RemoteError

from tests.contract.conftest import IS_REAL
from tests.support.waiting import wait_until

documented = pytest.mark.documented


@documented("guide/scale", "Results of map() come in the order of the inputs.")
def test_map_returns_results_in_the_order_of_its_inputs(running: ModuleType) -> None:
    assert list(running.sleep_or_square.map([0, 1, 2, 3])) == [0, 1, 4, 9]


@documented("guide/scale", "With order_outputs=False, results come as they are completed.")
def test_map_can_return_results_as_they_are_completed(running: ModuleType) -> None:
    results = list(running.sleep_or_square.map([0, 1, 2, 3], order_outputs=False))
    assert sorted(results) == [0, 1, 4, 9]
    assert results[0] != 0


@documented("guide/scale", "By default, an exception of an input is raised at the caller of map().")
def test_map_raises_the_exception_of_an_input(running: ModuleType) -> None:
    with pytest.raises(ValueError, match="1 is odd"):
        list(running.fail_if_odd.map([0, 1, 2]))


@documented("guide/scale", "With return_exceptions=True, exceptions are among the results.")
def test_map_can_return_exceptions_as_results(running: ModuleType) -> None:
    zero, one, two = running.fail_if_odd.map([0, 1, 2], return_exceptions=True)
    assert (zero, str(one), two) == (0, "1 is odd", 2)
    assert isinstance(one, ValueError)


@documented("reference/modal.Function", "remote_gen() yields what a generator function yields.")
def test_a_generator_streams_its_values(running: ModuleType) -> None:
    assert list(running.count.remote_gen(4)) == [0, 1, 2, 3]


@documented("guide/job-queue", "get(timeout=0) polls; a call without a result is a TimeoutError.")
def test_a_call_without_a_result_is_a_timeout_error(running: ModuleType) -> None:
    call = running.nap.spawn(1)
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    assert call.get() == "slept"


@documented("guide/job-queue", "A result stays accessible by the id of its call, for 7 days.")
def test_a_result_is_found_again_by_the_id_of_its_call(running: ModuleType) -> None:
    call = running.square.spawn(7)
    assert [modal.FunctionCall.from_id(call.object_id).get() for _ in range(2)] == [49, 49]


@documented("guide/job-queue", "7 days after a call has ended, get() raises OutputExpiredError.")
@pytest.mark.skipif(IS_REAL, reason="it takes 7 days")
def test_a_result_expires_after_seven_days(
    running: ModuleType, request: pytest.FixtureRequest
) -> None:
    emulator = request.getfixturevalue("modal_emulator")
    call = running.square.spawn(7)
    assert call.get() == 49
    emulator.age_results(7 * 86_400 - 600)
    assert modal.FunctionCall.from_id(call.object_id).get() == 49
    emulator.age_results(600)
    for found in (call, modal.FunctionCall.from_id(call.object_id)):
        with pytest.raises(OutputExpiredError):
            found.get(timeout=0)
    assert running.square.remote(8) == 64


@documented("guide/retries", "A failed input is run again up to `retries` times.")
def test_an_input_is_retried_until_it_succeeds(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    assert running.fail_first.remote(notes, key, 2) == 3


@documented("guide/retries", "After the last retry, the failure is propagated to the caller.")
def test_after_the_last_retry_its_exception_is_raised(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    with pytest.raises(ValueError, match="attempt 3 fails"):
        running.fail_first.remote(notes, key, 9)
    assert notes[key] == 3


@documented("guide/retries", "With map(), each input is retried independently.")
def test_each_input_of_a_map_has_its_own_retries(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    keys = [f"{key}-{n}" for n in range(3)]
    attempts = list(running.fail_first.starmap((notes, each, n) for n, each in enumerate(keys)))
    assert attempts == [1, 2, 3]


@documented("guide/timeouts", "An execution that exceeds the timeout is a FunctionTimeoutError.")
def test_a_timeout_is_raised_at_the_caller(running: ModuleType) -> None:
    with pytest.raises(FunctionTimeoutError):
        running.sleep_for.remote(20)


@documented(
    "guide/timeouts", "The timeout is that of one execution; the next call is not affected."
)
def test_after_a_timeout_the_function_can_be_called_again(running: ModuleType) -> None:
    with pytest.raises(FunctionTimeoutError):
        running.sleep_for.remote(20)
    assert running.sleep_for.remote(0) == "awake"


@documented("guide/timeouts", "The timeout is per attempt; each retry starts a new one.")
def test_each_retry_has_a_timeout_of_its_own(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    started = time.monotonic()
    with pytest.raises(FunctionTimeoutError):
        running.sleep_long.remote(notes, key)
    assert notes[key] == 2
    assert time.monotonic() - started >= 2


@documented("guide/timeouts", "startup_timeout, not timeout, limits the start of a container.")
def test_a_slow_start_does_not_count_for_the_timeout(running: ModuleType) -> None:
    assert running.Slow(amount=4).add.remote(1) == 5


@documented("reference/modal.FunctionCall", "cancel() stops the execution of a call.")
def test_a_cancelled_call_stops_and_raises_at_its_caller(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    call = running.wait_for_the_end.spawn(notes, key)
    wait_until(lambda: notes.get(f"{key}-container") is not None, "what it waits for", timeout_s=60)
    call.cancel()
    with pytest.raises(RemoteError):
        call.get(timeout=60)


@documented("reference/modal.exception", "InputCancellation is raised in a cancelled input.")
def test_a_cancelled_input_gets_an_exception_that_except_exception_lets_pass(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    call = running.wait_for_the_end.spawn(notes, key)
    wait_until(lambda: notes.get(f"{key}-container") is not None, "what it waits for", timeout_s=60)
    call.cancel()
    wait_until(lambda: notes.get(f"{key}-raised") is not None, "what it waits for", timeout_s=60)
    assert (notes[f"{key}-raised"], notes[f"{key}-is-exception"]) == ("InputCancellation", False)


@documented("reference/modal.FunctionCall", "terminate_containers=True also ends the containers.")
def test_cancelling_can_end_the_container(running: ModuleType, notes: modal.Dict, key: str) -> None:
    call = running.wait_for_the_end.spawn(notes, key)
    wait_until(lambda: notes.get(f"{key}-container") is not None, "what it waits for", timeout_s=60)
    call.cancel(terminate_containers=True)
    with pytest.raises(RemoteError):
        call.get(timeout=60)
    again = running.wait_for_the_end.spawn(notes, f"{key}-2")
    wait_until(
        lambda: notes.get(f"{key}-2-container") is not None, "what it waits for", timeout_s=60
    )
    again.cancel(terminate_containers=True)
    assert notes[f"{key}-2-container"] != notes[f"{key}-container"]


@documented("reference/modal.FunctionCall", "The inputs of a cancelled call are not run any more.")
def test_a_call_that_waits_is_cancelled_before_it_runs(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    first = running.one_at_a_time.spawn(notes, key, "first")
    second = running.one_at_a_time.spawn(notes, key, "second")
    second.cancel()
    first.get(timeout=60)
    running.one_at_a_time.remote(notes, key, "third")
    assert notes.get(f"{key}-second-started") is None


@documented("guide/scale", "max_containers is the upper limit on containers of a function.")
def test_there_are_never_more_containers_than_asked_for(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    calls = [running.one_at_a_time.spawn(notes, key, name) for name in ("a", "b")]
    for call in calls:
        call.get(timeout=60)
    spans = sorted((notes[f"{key}-{n}-started"], notes[f"{key}-{n}-ended"]) for n in ("a", "b"))
    assert spans[0][1] <= spans[1][0]


@documented("guide/cold-start", "A container stays alive for a while, and takes the next input.")
def test_a_container_is_used_again(running: ModuleType) -> None:
    assert running.container_id.remote() == running.container_id.remote()
