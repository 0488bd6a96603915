"""Apps by the real command line: run, deploy, look up, list, stop, detach, interrupt, kill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import modal
import pytest
from modal_proto import api_pb2

from modal_emulator import Emulator
from tests.support.waiting import wait_until

RunModal = Callable[..., "subprocess.CompletedProcess[str]"]
APP = "deployed_app.py"
MODAL_APPS = Path(__file__).parent / "modal_apps"


@pytest.fixture
def start_modal(modal_emulator: Emulator) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the real `modal` command and leave it running."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "modal", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=MODAL_APPS,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def app_state(emulator: Emulator, app_id: str) -> str:
    return next(each.state for each in emulator.apps() if each.app_id == app_id)


def app_of_call(emulator: Emulator, function_name: str) -> str:
    return emulator.calls(function_name)[-1].app_id


def input_runs(emulator: Emulator, function_name: str) -> bool:
    calls = emulator.calls(function_name)
    return bool(calls and calls[-1].inputs and calls[-1].inputs[0].task_id)


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


def test_lookups_that_fail_say_what_there_is(deployed: Path) -> None:
    with pytest.raises(modal.exception.NotFoundError, match=r"no function 'anser'.*answer"):
        modal.Function.from_name("deployed", "anser").hydrate()
    with pytest.raises(modal.exception.NotFoundError, match=r"is a modal\.Cls"):
        modal.Function.from_name("deployed", "Greeter").hydrate()
    with pytest.raises(modal.exception.NotFoundError, match=r"'undeployed' is not deployed"):
        modal.Function.from_name("undeployed", "answer").hydrate()


@pytest.mark.skipif(
    not hasattr(api_pb2, "ObjectSuggestRequest"), reason="this modal makes no suggestions"
)
def test_the_command_line_suggests_names_like_a_wrong_one(
    deployed: Path, run_modal: RunModal
) -> None:
    for wrong, right in (
        (("app", "history", "deploed"), "modal app history deployed"),
        (("function", "info", "deployed/anser"), "modal function info deployed/answer"),
    ):
        done = run_modal(*wrong, check=False)
        assert done.returncode == 1
        assert right in done.stdout + done.stderr


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
def test_a_detached_app_goes_on_until_its_calls_end(
    run_modal: RunModal, modal_emulator: Emulator
) -> None:
    done = run_modal("run", "--detach", f"{APP}::spawn_and_leave", "--seconds", "2")
    call_id = re.search(r"call: (fc-\w+)", done.stdout)
    assert call_id is not None
    assert modal.FunctionCall.from_id(call_id[1]).get(timeout=60) == "slept"
    app_id = app_of_call(modal_emulator, "sleep")
    wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")


def test_an_app_that_is_not_detached_ends_with_its_entrypoint(
    run_modal: RunModal,
) -> None:
    done = run_modal("run", f"{APP}::spawn_and_leave", "--seconds", "600")
    call_id = re.search(r"call: (fc-\w+)", done.stdout)
    assert call_id is not None
    with pytest.raises(modal.exception.RemoteError, match="stopped"):
        modal.FunctionCall.from_id(call_id[1]).get(timeout=30)


def test_ctrl_c_stops_the_app(
    start_modal: Callable[..., subprocess.Popen[str]], modal_emulator: Emulator
) -> None:
    before = len(modal_emulator.calls("sleep"))
    process = start_modal("run", f"{APP}::sleep_long")
    wait_until(
        lambda: len(modal_emulator.calls("sleep")) > before and input_runs(modal_emulator, "sleep"),
        "the start of the input",
    )
    process.send_signal(signal.SIGINT)
    process.wait(timeout=60)
    app_id = app_of_call(modal_emulator, "sleep")
    wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")
    assert modal_emulator.calls("sleep")[-1].inputs[0].status == "terminated"


@pytest.mark.slow
@pytest.mark.parametrize("detached", [False, True])
def test_a_killed_client_ends_its_app_unless_detached(
    detached: bool,
    start_modal: Callable[..., subprocess.Popen[str]],
    modal_emulator: Emulator,
) -> None:
    before = len(modal_emulator.calls("sleep"))
    options = ["--detach"] if detached else []
    process = start_modal("run", *options, f"{APP}::sleep_long")
    wait_until(
        lambda: len(modal_emulator.calls("sleep")) > before and input_runs(modal_emulator, "sleep"),
        "the start of the input",
    )
    app_id = app_of_call(modal_emulator, "sleep")
    process.kill()
    ended = ("detached_disconnected",) if detached else ("stopped",)
    wait_until(lambda: app_state(modal_emulator, app_id) in ended, f"the state {ended}")
    if detached:
        assert modal_emulator.calls("sleep")[-1].inputs[0].status == ""
        modal.FunctionCall.from_id(modal_emulator.calls("sleep")[-1].call_id).cancel()
        wait_until(lambda: app_state(modal_emulator, app_id) == "stopped", "the end of the app")


def test_a_wrong_token_is_an_auth_error(modal_emulator: Emulator) -> None:
    code = "import modal; modal.Function.from_name('deployed', 'answer').hydrate()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MODAL_TOKEN_SECRET": "as-wrong"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "AuthError" in done.stderr
    assert "emulator run" in done.stderr


def test_a_newer_modal_than_tested_is_refused_with_the_range(modal_emulator: Emulator) -> None:
    code = "import modal; modal.Function.from_name('deployed', 'answer').hydrate()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MODAL_OVERRIDE_HEADERS": "x-modal-client-version:1.7.0"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "modal 1.7.0" in done.stderr
    assert "modal>=1.6.0,<1.7" in done.stderr


@pytest.mark.slow
def test_a_client_without_heartbeats_is_gone_though_connected(tmp_path: Path) -> None:
    with Emulator(heartbeat_limit_s=3.0) as emulator:
        process = subprocess.Popen(
            [sys.executable, "-m", "modal", "run", f"{APP}::sleep_long"],
            env={**os.environ, **emulator.environment, "MODAL_HEARTBEAT_INTERVAL": "0.3"},
            cwd=MODAL_APPS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: input_runs(emulator, "sleep"), "the start of the input")
            process.send_signal(signal.SIGSTOP)
            app_id = app_of_call(emulator, "sleep")
            wait_until(lambda: app_state(emulator, app_id) == "stopped", "the end of the app")
        finally:
            process.kill()
            process.wait()


def test_what_is_not_emulated_says_so(modal_emulator: Emulator) -> None:
    app = modal.App.lookup("for-a-sandbox", create_if_missing=True)
    with pytest.raises(modal.exception.Error, match="emulator does not implement"):
        modal.Sandbox.create("true", app=app)


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
