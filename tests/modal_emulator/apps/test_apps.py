"""Apps by the real command line: run, deploy, look up, list, stop, detach, interrupt, kill."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import modal
import pytest
from modal.exception import NotFoundError

from modal_emulator import Emulator
from tests.support.emulator_command import MODAL_APPS, app_of_call, app_state, input_runs
from tests.support.waiting import wait_until

RunModal = Callable[..., "subprocess.CompletedProcess[str]"]
APP = "deployed_app.py"


def test_modal_run_calls_the_entrypoint_with_its_options(run_modal: RunModal) -> None:
    assert "the answer times n: 126" in run_modal("run", f"{APP}::main", "--n", "3").stdout


def test_modal_run_calls_a_function_and_prints_its_logs(run_modal: RunModal) -> None:
    done = run_modal("run", f"{APP}::say", "--word", "hi", "--times", "2")
    assert "hi 0" in done.stdout
    assert "hi 1" in done.stdout


def test_modal_run_ends_with_1_when_the_function_raises(run_modal: RunModal) -> None:
    done = run_modal("run", f"{APP}::fail", check=False)
    assert done.returncode == 1
    assert "on purpose" in done.stdout + done.stderr


def test_the_app_of_a_finished_run_is_stopped(
    run_modal: RunModal, modal_emulator: Emulator
) -> None:
    run_modal("run", "-q", f"{APP}::main")
    app_id = app_of_call(modal_emulator, "answer")
    wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")
    assert not [
        each
        for each in modal_emulator.containers()
        if each.app_id == app_id and each.state != "ended"
    ]


@pytest.fixture(scope="module")
def deployed(modal_emulator_server: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deploy the app from a folder of its own, where it can be changed."""
    folder = tmp_path_factory.mktemp("project")
    path = folder / APP
    shutil.copy(MODAL_APPS / APP, path)
    deploy(path)
    return path


def deploy(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def redeploy(path: Path, answer: int) -> None:
    path.write_text(re.sub(r"ANSWER = \d+", f"ANSWER = {answer}", path.read_text()))
    deploy(path)


def test_a_deployed_app_is_called_by_name(deployed: Path) -> None:
    assert modal.Function.from_name("deployed", "answer").remote() == 42
    greeter = modal.Cls.from_name("deployed", "Greeter")
    assert greeter(name="there").greet.remote() == "hello there"
    assert greeter.with_options(gpu="L4")().greet.remote() == "hello you"


def test_another_process_spawns_and_gets_by_name(deployed: Path) -> None:
    code = (
        "import modal\n"
        "call = modal.Function.from_name('deployed', 'say').spawn('hello')\n"
        "print(modal.FunctionCall.from_id(call.object_id).get())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "hello", done.stderr


@pytest.mark.slow
def test_a_redeployment_runs_the_new_code_and_a_rollback_the_old(
    deployed: Path, run_modal: RunModal
) -> None:
    answer = modal.Function.from_name("deployed", "answer")
    before = answer.remote()
    redeploy(deployed, before + 1)
    assert answer.remote() == before + 1
    versions = json.loads(run_modal("app", "history", "deployed", "--json").stdout)
    assert len(versions) >= 2
    run_modal("app", "rollback", "deployed")
    assert answer.remote() == before


def test_a_function_of_an_earlier_version_keeps_its_code(
    deployed: Path, run_modal: RunModal
) -> None:
    before = modal.Function.from_name("deployed", "answer").remote()
    rows = json.loads(run_modal("app", "history", "deployed", "--json").stdout)
    version = len(rows)
    redeploy(deployed, before + 1)
    pinned = modal.Function.from_name("deployed", "answer", version=version)
    assert pinned.remote() == before
    assert pinned.with_options(memory=300).remote() == before
    assert modal.Function.from_name("deployed", "answer").remote() == before + 1
    with pytest.raises(NotFoundError, match=r"has no version 99\. It has: 1, 2"):
        modal.Function.from_name("deployed", "answer", version=99).hydrate()


def test_a_failed_redeployment_leaves_the_app_as_it_was(
    deployed: Path, modal_emulator: Emulator
) -> None:
    good = deployed.read_text()
    before = modal.Function.from_name("deployed", "answer").remote()
    try:
        changed = good.replace("@app.function()\ndef fail", '@app.function(gpu="X")\ndef fail')
        deployed.write_text(re.sub(r"ANSWER = \d+", "ANSWER = 1000", changed))
        with pytest.raises(AssertionError, match="not a GPU type"):
            deploy(deployed)
    finally:
        deployed.write_text(good)
    assert modal.Function.from_name("deployed", "answer").remote() == before
    assert "deployed" in [each.state for each in modal_emulator.apps() if each.name == "deployed"]


def test_app_list_shows_the_deployed_app(deployed: Path, run_modal: RunModal) -> None:
    rows = json.loads(run_modal("app", "list", "--json", "--limit", "0").stdout)
    # Two columns say it: the description and the state.
    assert any(list(row.values()).count("deployed") == 2 for row in rows)


def test_container_list_shows_a_running_container(deployed: Path, run_modal: RunModal) -> None:
    task_id = modal.Function.from_name("deployed", "task_id").remote()
    rows = json.loads(run_modal("container", "list", "--json").stdout)
    assert any(task_id in row.values() for row in rows)


def test_app_stop_ends_a_deployed_app(run_modal: RunModal, modal_emulator: Emulator) -> None:
    run_modal("deploy", APP, "--name", "to-be-stopped")
    call = modal.Function.from_name("to-be-stopped", "sleep").spawn(600)
    wait_until(lambda: input_runs(modal_emulator, "sleep"), "the start of the input")
    run_modal("app", "stop", "to-be-stopped", "--yes")
    with pytest.raises(modal.exception.RemoteError, match="stopped"):
        call.get(timeout=30)
    with pytest.raises(modal.exception.NotFoundError):
        modal.Function.from_name("to-be-stopped", "answer").hydrate()


@pytest.mark.slow
def test_environments_are_kept_apart(run_modal: RunModal) -> None:
    run_modal("environment", "create", "staging")
    run_modal("deploy", "--env", "staging", "--name", "only-in-staging", APP)
    staged = modal.Function.from_name("only-in-staging", "answer", environment_name="staging")
    assert staged.remote() == 42
    with pytest.raises(modal.exception.NotFoundError, match="not deployed in environment") as error:
        modal.Function.from_name("only-in-staging", "answer").hydrate()
    assert "only-in-staging" not in str(error.value).partition("Deployed there")[2]
    with pytest.raises(modal.exception.NotFoundError, match="no-such-environment"):
        modal.Function.from_name("x", "y", environment_name="no-such-environment").hydrate()
