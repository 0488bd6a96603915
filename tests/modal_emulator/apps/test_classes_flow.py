"""Classes with life cycles, parameters and options through the real client."""

from __future__ import annotations

from collections.abc import Iterator

import emulated_classes as classes
import modal
import pytest

from modal_emulator import Emulator
from tests.support.waiting import wait_until


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with classes.app.run():
        yield


def drain_events() -> list[str]:
    return [str(event) for event in classes.events.get_many(100, block=False)]


def test_methods_run_with_default_parameters() -> None:
    assert classes.Multiplier().multiply.remote(4) == 8
    assert classes.Plain().hello.remote() == "hello"
    assert classes.Plain().hello_async.remote() == "hello again"


def test_parameters_reach_the_container_and_make_their_own_pool() -> None:
    three, four = classes.Multiplier(factor=3), classes.Multiplier(factor=4)
    assert (three.multiply.remote(5), four.multiply.remote(5)) == (15, 20)
    assert three.task_id.remote() != four.task_id.remote()
    assert three.task_id.remote() == three.task_id.remote()


def test_enter_runs_once_per_container() -> None:
    drain_events()
    warm = classes.Multiplier(label="warm")
    assert warm.times_entered.remote() == 1
    assert warm.multiply.remote(2) == 4
    assert drain_events() == ["enter warm"]


def test_methods_map_and_yield() -> None:
    assert list(classes.Multiplier(factor=3).multiply.map([1, 2, 3])) == [3, 6, 9]
    assert list(classes.Multiplier(factor=3).multiples.remote_gen(3)) == [0, 3, 6]


def test_with_options_on_a_class_is_received(modal_emulator: Emulator) -> None:
    configured = classes.Multiplier.with_options(gpu="L4:2", timeout=99)
    assert configured(factor=5).multiply.remote(2) == 10
    found = modal_emulator.functions("Multiplier.*")[-1]
    assert (found.gpus, found.timeout_s, found.is_class) == (("L4:2",), 99, True)


def test_an_exception_in_enter_reaches_the_caller() -> None:
    with pytest.raises(ArithmeticError, match="no model here"):
        classes.Broken().hello.remote()


def test_exit_runs_when_the_app_ends(modal_emulator: Emulator) -> None:
    app = modal.App("exits")
    leaver = app.cls()(classes.Leaver)
    with app.run():
        assert leaver().hello.remote() == "hello"
        app_id = app.app_id
        drain_events()
    assert classes.events.get(timeout=60) == "left"

    def stopped() -> bool:
        return any(
            each.app_id == app_id and each.state == "stopped" for each in modal_emulator.apps()
        )

    wait_until(stopped, "the end of the app")


def test_a_plain_class_can_be_decorated_at_run_time(modal_emulator: Emulator) -> None:
    app = modal.App("decorated")
    decorated = app.cls(gpu="T4")(classes.Undecorated)
    with app.run():
        assert decorated().hello.remote() == "hello from T4"
    assert modal_emulator.functions("Undecorated.*")[-1].gpus == ("T4",)
