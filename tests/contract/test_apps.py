"""What is refused before anything runs, GPU names, logs, and the life of apps."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest
from modal.exception import InvalidError, NotFoundError, RemoteError

from tests.contract.conftest import APPS, IS_REAL, PREFIX
from tests.contract.limits import GPU_TIMEOUT_S

documented = pytest.mark.documented
NewApp = Callable[..., str]


def modal_command(*arguments: str) -> str:
    """Run a command of modal, and return what it prints on stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "modal", *arguments],
        env={**os.environ, "CONTRACT_PREFIX": PREFIX, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=APPS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@documented("guide/gpu", "The GPU types, and up to 8 in a container, are these.")
@pytest.mark.parametrize("gpu", ["T4", "L4:8", "A10:4", "A100", "H100!", "B200+", "RTX-PRO-6000"])
def test_a_documented_gpu_is_accepted(new_app: NewApp, gpu: str) -> None:
    assert new_app(gpu=gpu)


@documented("guide/gpu", "A GPU type is one of a list.")
def test_an_unknown_gpu_is_refused_before_anything_runs(new_app: NewApp) -> None:
    with pytest.raises((InvalidError, RemoteError), match=r"(?i)gpu|H1000"):
        new_app(gpu="H1000")


@documented("guide/gpu", "A10 instances support up to 4 GPUs.")
def test_too_many_gpus_are_refused(new_app: NewApp) -> None:
    with pytest.raises((InvalidError, RemoteError), match=r"(?i)gpu|A10"):
        new_app(gpu="A10:8")


@documented("guide/gpu", "A list of GPU types is tried in its order.")
def test_a_list_of_gpus_is_accepted(new_app: NewApp) -> None:
    assert new_app(gpu=["H100", "A100-80GB", "L4"])


@documented("guide/gpu", "The container has the GPU that was asked for.")
@pytest.mark.skipif(not (IS_REAL and os.environ.get("GPU") == "1"), reason="on Modal, with GPU=1")
def test_a_container_has_its_gpu(running: ModuleType) -> None:
    app = modal.App(f"{PREFIX}-gpu")
    names = app.function(gpu="T4", timeout=GPU_TIMEOUT_S, serialized=True, name="gpu_names")(
        lambda: __import__("subprocess").check_output(["nvidia-smi", "-L"], text=True)
    )
    with app.run():
        assert "T4" in names.remote()


@documented("guide/timeouts", "A timeout is from 1 second to 24 hours.")
@pytest.mark.parametrize("timeout", [0, 24 * 3600 + 1])
def test_a_timeout_out_of_range_is_refused(new_app: NewApp, timeout: int) -> None:
    with pytest.raises((InvalidError, RemoteError)):
        new_app(timeout=timeout)


@documented("guide/resources", "Requests above the maximum are refused with an InvalidError.")
@pytest.mark.parametrize("options", [{"cpu": 10_000.0}, {"memory": 100_000_000}])
def test_too_large_requests_are_refused(new_app: NewApp, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        new_app(**options)


@documented("guide/secrets", "A Secret that does not exist is an error when the app starts.")
def test_a_missing_secret_is_not_found(new_app: NewApp, key: str) -> None:
    with pytest.raises(NotFoundError):
        new_app(secrets=[modal.Secret.from_name(f"contract-{key}")])


@documented("reference/modal.Secret", "required_keys are checked by the server.")
def test_a_secret_without_a_required_key_is_an_error(new_app: NewApp, key: str) -> None:
    name = f"{PREFIX}-{key}"
    modal.Secret.objects.create(name, {"GIVEN": "1"})
    try:
        assert new_app(secrets=[modal.Secret.from_name(name, required_keys=["GIVEN"])])
        with pytest.raises((InvalidError, NotFoundError), match="MISSING"):
            new_app(secrets=[modal.Secret.from_name(name, required_keys=["MISSING"])])
    finally:
        modal.Secret.objects.delete(name)


@documented("reference/modal.App", "set_tags() replaces the tags that the app was started with.")
def test_tags_of_an_app_are_kept(running: ModuleType) -> None:
    assert running.app.get_tags() == {"contract": PREFIX}
    running.app.set_tags({"contract": PREFIX, "more": "x"})
    assert running.app.get_tags() == {"contract": PREFIX, "more": "x"}


@documented("reference/cli/run", "The output of containers is shown, in order and complete.")
def test_logs_are_complete_and_in_order(service: None) -> None:
    printed = modal_command("run", "contract_app.py::say_much")
    numbers = [int(number) for number in re.findall(r"^line (\d+)$", printed, re.MULTILINE)]
    assert numbers == list(range(2000))


@documented("guide/apps", "With --detach, an app runs on after its client has exited.")
def test_a_detached_app_outlives_its_client(service: None, tmp_path: Path) -> None:
    file = tmp_path / "call"
    entry = "contract_app.py::spawn_and_leave"
    modal_command("run", "--detach", entry, "--call-file", str(file), "--seconds", "2")
    assert modal.FunctionCall.from_id(file.read_text()).get(timeout=60) == "slept"


@documented("guide/apps", "Without --detach, an app is stopped when its client exits.")
def test_an_app_ends_with_its_client(service: None, tmp_path: Path) -> None:
    file = tmp_path / "call"
    entry = "contract_app.py::spawn_and_leave"
    modal_command("run", entry, "--call-file", str(file), "--seconds", "50")
    with pytest.raises((RemoteError, NotFoundError)):
        modal.FunctionCall.from_id(file.read_text()).get(timeout=30)


@documented("guide/trigger-deployed-functions", "A deployed function is called by its name.")
def test_a_deployed_function_is_found_by_name_until_it_is_stopped(service: None) -> None:
    name = f"{PREFIX}-deployed"
    modal_command("deploy", "contract_app.py", "--name", name)
    assert modal.Function.from_name(name, "square").remote(5) == 25
    modal_command("app", "stop", "--yes", name)
    with pytest.raises(NotFoundError):
        modal.Function.from_name(name, "square").remote(5)
