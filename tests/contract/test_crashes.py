"""Containers that die or are preempted while they run an input, as Modal documents it."""

from __future__ import annotations

from types import ModuleType

import modal
import pytest

documented = pytest.mark.documented


@documented("guide/retries", "A container that crashes is rescheduled, with its input.")
@pytest.mark.parametrize("how", ["SIGKILL", "os._exit"])
def test_the_input_of_a_container_that_dies_runs_again(
    running: ModuleType, notes: modal.Dict, key: str, how: str
) -> None:
    assert running.die_once.remote(notes, key, how) == 2


@documented("guide/retries", "A crash is apart from `retries`.")
def test_a_crash_uses_up_no_retry(running: ModuleType, notes: modal.Dict, key: str) -> None:
    # two retries: an exception, a crash and another exception leave the fourth attempt
    assert running.die_and_fail.remote(notes, key) == 4


@documented("guide/preemption", "An interrupted Function is restarted on the same input.")
def test_a_preempted_input_gets_an_interrupt_and_runs_again(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    assert running.preempted_once.remote(notes, key) == 2
    assert notes[f"{key}-interrupted"] is True
