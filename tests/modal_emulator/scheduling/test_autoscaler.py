"""How many containers there are, and for how long."""

from __future__ import annotations

from collections.abc import Iterator

import emulated_settings as settings
import modal
import pytest

from modal_emulator import Emulator
from tests.support.waiting import wait_until


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with settings.app.run():
        yield


def test_min_containers_are_started_without_a_call(modal_emulator: Emulator) -> None:
    app = modal.App("warm")
    app.function(min_containers=2)(settings.one)

    def warm() -> bool:
        states = [each.state for each in modal_emulator.containers() if each.function_name == "one"]
        return states.count("running") == 2

    with app.run():
        wait_until(warm, "the start of two containers")


def test_an_autoscaler_update_changes_the_containers(modal_emulator: Emulator) -> None:
    app = modal.App("updated")
    function = app.function()(settings.one)
    with app.run():
        # Its name since modal 1.6.2.
        autoscaler = getattr(function, "autoscaler", None)
        update = autoscaler.update if autoscaler else function.update_autoscaler
        update(min_containers=1)
        wait_until(
            lambda: any(
                each.function_id == function.object_id and each.state == "running"
                for each in modal_emulator.containers()
            ),
            "the start of a container",
        )


def test_max_containers_bound_how_many_run(modal_emulator: Emulator) -> None:
    limited = settings.task_id.with_options(max_containers=1)
    assert len(set(limited.map(range(0)))) == 0
    assert len(set(limited.starmap([()] * 20))) == 1


@pytest.mark.slow
def test_an_idle_container_ends_after_the_scaledown_window(modal_emulator: Emulator) -> None:
    task_id = settings.task_id.with_options(scaledown_window=2).remote()

    def ended() -> str:
        found = [each for each in modal_emulator.containers() if each.task_id == task_id]
        return found[0].end_reason if found[0].state == "ended" else ""

    wait_until(ended, "the end of the container")
    assert ended() == "idle"
