"""The life of containers, classes, secrets and images, as Modal documents them."""

from __future__ import annotations

from types import ModuleType

import modal
import pytest

from tests.support.waiting import wait_until

documented = pytest.mark.documented


@documented(
    "guide/lifecycle-functions", "enter() runs once for each container, not for each input."
)
def test_a_container_is_set_up_once_for_many_inputs(running: ModuleType) -> None:
    object_ = running.Slow(amount=2)
    assert [object_.add.remote(1), object_.add.remote(2)] == [3, 4]
    assert object_.inputs.remote() == 2


@documented("guide/parametrized-functions", "Each set of parameters has containers of its own.")
def test_each_set_of_parameters_has_its_own_containers(running: ModuleType) -> None:
    assert [running.Slow(amount=n).add.remote(1) for n in (5, 6)] == [6, 7]
    assert running.Slow(amount=5).inputs.remote() == 1


@documented("guide/lifecycle-functions", "The exit handler runs when the container is ended.")
def test_the_exit_handler_of_an_idle_container_runs(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    short = running.Exits.with_options(scaledown_window=2)
    short().remember.remote(notes, key)
    wait_until(lambda: notes.get(key) == "left", "what it waits for", timeout_s=60)


@documented("guide/secrets", "The keys of a Secret are environment variables of the container.")
def test_secrets_are_environment_variables(running: ModuleType) -> None:
    assert running.environment.remote()["CONTRACT_FIRST"] == "1"


@documented("guide/secrets", "Of two Secrets with the same key, the later one counts.")
def test_the_later_secret_wins(running: ModuleType) -> None:
    assert running.environment.remote()["CONTRACT_BOTH"] == "second"


@documented("guide/images", "env() sets environment variables of the container.")
def test_variables_of_the_image_are_set(running: ModuleType) -> None:
    assert running.environment.remote()["CONTRACT_IMAGE"] == "yes"
