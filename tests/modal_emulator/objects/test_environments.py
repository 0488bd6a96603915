"""Environments that are there, and those that aren't."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import modal
import pytest
from modal.exception import NotFoundError

from modal_emulator import Emulator

pytestmark = pytest.mark.usefixtures("modal_emulator")

MISSING = "nope"


def run_an_app() -> None:
    app = modal.App("in-a-missing-environment")
    with app.run(environment_name=MISSING):
        raise AssertionError("the app runs")


def deploy_an_app() -> None:
    modal.App("in-a-missing-environment").deploy(environment_name=MISSING)


REQUESTS: dict[str, Callable[[], Any]] = {
    "SecretGetOrCreate": lambda: modal.Secret.from_name("s", environment_name=MISSING).hydrate(),
    "SecretGetOrCreate, creating": lambda: modal.Secret.objects.create(
        "s", {"A": "1"}, environment_name=MISSING
    ),
    "SecretList": lambda: modal.Secret.objects.list(environment_name=MISSING),
    "VolumeGetOrCreate": lambda: modal.Volume.from_name("v", environment_name=MISSING).hydrate(),
    "VolumeGetOrCreate, creating": lambda: modal.Volume.from_name(
        "v", environment_name=MISSING, create_if_missing=True
    ).hydrate(),
    "VolumeList": lambda: modal.Volume.objects.list(environment_name=MISSING),
    "DictGetOrCreate": lambda: modal.Dict.from_name("d", environment_name=MISSING).hydrate(),
    "DictGetOrCreate, creating": lambda: modal.Dict.from_name(
        "d", environment_name=MISSING, create_if_missing=True
    ).hydrate(),
    "DictList": lambda: modal.Dict.objects.list(environment_name=MISSING),
    "QueueGetOrCreate": lambda: modal.Queue.from_name("q", environment_name=MISSING).hydrate(),
    "QueueGetOrCreate, creating": lambda: modal.Queue.from_name(
        "q", environment_name=MISSING, create_if_missing=True
    ).hydrate(),
    "QueueList": lambda: modal.Queue.objects.list(environment_name=MISSING),
    "AppGetByDeploymentName": lambda: modal.App.lookup("a", environment_name=MISSING),
    "AppGetOrCreate": lambda: modal.App.lookup(
        "a", environment_name=MISSING, create_if_missing=True
    ),
    "AppCreate": run_an_app,
    "AppCreate, deploying": deploy_an_app,
    "FunctionGet": lambda: modal.Function.from_name("a", "f", environment_name=MISSING).hydrate(),
    "ClassGet": lambda: modal.Cls.from_name("a", "C", environment_name=MISSING).hydrate(),
}


@pytest.mark.parametrize("request_by_name", REQUESTS.values(), ids=REQUESTS)
def test_a_missing_environment_is_said_before_a_missing_object(
    request_by_name: Callable[[], Any],
) -> None:
    with pytest.raises(NotFoundError, match=f"(^|: )Environment '{MISSING}' not found"):
        request_by_name()


@pytest.mark.parametrize(
    "command",
    [
        ["secret", "create", "s", "A=1"],
        ["volume", "ls", "v"],
        ["app", "list"],
        ["app", "logs", "a"],
        ["container", "list"],
        ["run", "deployed_app.py::main"],
    ],
    ids=" ".join,
)
def test_the_variable_of_the_environment_counts_too(
    command: list[str],
    run_modal: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MODAL_ENVIRONMENT", MISSING)
    done = run_modal(*command, check=False)
    assert done.returncode == 1
    assert f"Environment '{MISSING}' not found" in done.stdout + done.stderr


def test_the_same_name_is_another_object_in_another_environment(modal_emulator: Emulator) -> None:
    modal.environments.create_environment("other")
    try:
        modal.Secret.objects.create("of-one", {"A": "1"}, environment_name="other")
        assert modal.Secret.from_name("of-one", environment_name="other").hydrate().object_id
        with pytest.raises(NotFoundError, match=r"^Secret 'of-one' not found"):
            modal.Secret.from_name("of-one").hydrate()
    finally:
        modal.environments.delete_environment("other")
