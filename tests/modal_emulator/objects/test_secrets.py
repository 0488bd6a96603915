"""Secrets by SDK, and in containers."""

from __future__ import annotations

import itertools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import AlreadyExistsError, InvalidError, NotFoundError

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected

register_pickle_by_value(sys.modules[__name__])

_numbers = itertools.count()
VALUE = "value-that-must-not-show"


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module", autouse=True)
def emulator(state_dir: Path) -> Iterator[Emulator]:
    with Emulator(state_dir) as emulator, connected(emulator):
        yield emulator


def new_name() -> str:
    return f"secret-{next(_numbers)}"


def variables(*names: str) -> dict[str, str | None]:
    """In a container: return environment variables."""
    return {name: os.environ.get(name) for name in names}


def seen_by_container(secrets: list[modal.Secret], *names: str) -> dict[str, str | None]:
    app = modal.App("secrets")
    function = app.function(serialized=True, secrets=secrets)(variables)
    with app.run():
        return function.remote(*names)


def test_containers_get_named_and_inline_secrets() -> None:
    name = new_name()
    modal.Secret.objects.create(name, {"NAMED": "1", "BOTH": "named"})
    secrets = [
        modal.Secret.from_name(name, required_keys=["NAMED"]),
        modal.Secret.from_dict({"INLINE": "2", "DROPPED": None, "BOTH": "inline"}),
    ]
    assert seen_by_container(secrets, "NAMED", "INLINE", "DROPPED", "BOTH") == {
        "NAMED": "1",
        "INLINE": "2",
        "DROPPED": None,
        "BOTH": "inline",
    }
    assert modal.Secret.from_name(name).hydrate().info().name == name


def test_a_missing_secret_stops_the_app_before_it_runs() -> None:
    with pytest.raises(NotFoundError, match="Secret 'not-there' not found"):
        seen_by_container([modal.Secret.from_name("not-there")])


def test_missing_keys_are_named_without_values() -> None:
    name = new_name()
    modal.Secret.objects.create(name, {"PRESENT": VALUE})

    with pytest.raises(NotFoundError, match=r"required.*ABSENT.*it has PRESENT") as error:
        modal.Secret.from_name(name, required_keys=["PRESENT", "ABSENT"]).hydrate()
    assert VALUE not in str(error.value)


def test_a_secret_is_created_once_updated_and_deleted() -> None:
    name = new_name()
    modal.Secret.objects.create(name, {"A": "1"})
    with pytest.raises(AlreadyExistsError, match=name):
        modal.Secret.objects.create(name, {"A": "2"})
    modal.Secret.objects.create(name, {"A": "3"}, allow_existing=True)

    secret = modal.Secret.from_name(name)
    assert seen_by_container([secret], "A") == {"A": "1"}
    secret.update({"A": "new", "B": "added"})
    assert seen_by_container([modal.Secret.from_name(name)], "A", "B") == {"A": "new", "B": "added"}

    modal.Secret.objects.delete(name)
    with pytest.raises(NotFoundError):
        modal.Secret.from_name(name).hydrate()
    modal.Secret.objects.delete(name, allow_missing=True)


def test_secrets_are_listed_by_name() -> None:
    first, second = new_name(), new_name()
    modal.Secret.objects.create(first, {"A": "1"})
    modal.Secret.objects.create(second, {"A": "1"})
    inline = modal.Secret.from_dict({"A": "1"})
    seen_by_container([modal.Secret.from_name(first), inline], "A")

    listed = [secret.name for secret in modal.Secret.objects.list()]
    assert listed.index(second) < listed.index(first)
    assert None not in listed
    assert "" not in listed


def test_a_bad_name_is_refused() -> None:
    with pytest.raises(InvalidError, match="Invalid Secret name"):
        modal.Secret.objects.create("with space", {"A": "1"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"1_FIRST": "x"}, "doesn't begin with a digit"),
        ({"WITH SPACE": "x"}, "letters, digits and underscores"),
        ({"": "x"}, "letters, digits and underscores"),
        ({"WITH\nLINE": "x"}, "letters, digits and underscores"),
        ({"A" * 16_385: "x"}, "16384 at most"),
        ({"LONG": VALUE * 2_000}, "the value of LONG has 48000 characters"),
    ],
)
def test_what_no_variable_can_be_is_refused(values: dict[str, str], message: str) -> None:
    name = new_name()
    with pytest.raises(InvalidError, match=message) as refused:
        modal.Secret.objects.create(name, values)
    assert VALUE not in str(refused.value)
    modal.Secret.objects.create(name, {"FIRST": "x", "_2": "y" * 32_768})  # nothing was left
    with pytest.raises(InvalidError, match=message):
        modal.Secret.from_name(name).update(values)
    [listed] = [s for s in modal.Secret.objects.list() if s.name == name]
    assert seen_by_container([listed], "FIRST", "LONG") == {"FIRST": "x", "LONG": None}


def test_values_are_in_files_of_their_owner_only(state_dir: Path) -> None:
    modal.Secret.objects.create(new_name(), {"A": VALUE})

    files = [each for each in state_dir.rglob("*") if each.is_file()]
    holding = [each for each in files if VALUE.encode() in each.read_bytes()]
    assert holding
    assert {stat.S_IMODE(each.stat().st_mode) for each in holding} == {0o600}
