"""Runs on Modal that are detached, found again and ended, after their client or without it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import ModalBackend, load_run, submit_experiment
from ml_experiments.backends.modal.mounts import runs_volume
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus
from modal_emulator import Emulator
from tests.support.modal_runs import WAIT_S, Recorder, containers_of, run_command, start_command
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def call(modal_emulator: Emulator, tmp_path: Path) -> Call:
    """Run `ml-experiments …` in a folder that has an experiment which takes its time."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def slow(seconds: float = 600.0):\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(seconds)\n"
        "    return 'done'\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run_command(modal_emulator, tmp_path, *arguments)

    return run


def detached(call: Call, *overrides: str) -> RunFolder:
    arguments = ("run", "slow.slow", *overrides, "--backend", "modal", "--detach", "--json")
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return RunFolder(Path(json.loads(done.stdout)["run_dir"]))


def kill_client(folder: RunFolder) -> None:
    client = folder.read_manifest().client
    assert client is not None
    os.kill(client.pid, signal.SIGKILL)
    wait_until(lambda: client.is_alive() is False, "the end of the client")


def test_a_detached_run_is_accepted_once_modal_has_taken_it(
    modal_emulator: Emulator, call: Call
) -> None:
    modal_emulator.delay_rpc("FunctionMap", 1)
    place = detached(call, "seconds=0.1").read_manifest().modal
    assert place is not None
    assert place.function_call_id is not None
    assert call("runs", "wait", "last").returncode == 0


def test_a_detached_run_is_collected_by_its_supervisor(call: Call) -> None:
    folder = detached(call, "seconds=0.1")
    done = call("runs", "follow", "last")
    assert done.returncode == 0, done.stderr
    assert "begun" in done.stdout
    assert folder.read_result().results == "done"
    assert call("runs", "logs", "last", "--since", "10m").stdout == "begun\n"
    assert call("runs", "logs", "last", "--since", "2999-01-01").stdout == ""


def test_a_run_whose_client_is_gone_is_followed_by_another(call: Call) -> None:
    folder = detached(call, "seconds=2")
    kill_client(folder)
    assert folder.outcome().status in (RunStatus.PENDING, RunStatus.RUNNING)
    refused = call("runs", "logs", "-f", "last", "--since", "2999-01-01")
    assert (refused.returncode, "leave out --since" in refused.stderr) == (2, True)
    done = call("runs", "follow", "last")
    assert done.returncode == 0, done.stderr
    assert folder.read_result().results == "done"


def test_whoever_waits_for_a_run_goes_on_when_its_client_is_killed(
    modal_emulator: Emulator, call: Call, tmp_path: Path
) -> None:
    folder = detached(call)
    run_id, seed = folder.path.name, str(folder.read_spec().seed)
    again = ("run", "slow.slow", "--backend", "modal", "--seed", seed)
    commands = (
        ("runs", "follow", run_id),
        ("runs", "logs", "-f", run_id),
        (*again, "--run-id", run_id),
        ("runs", "wait", run_id),
    )
    waiting = [start_command(modal_emulator, tmp_path, *command) for command in commands]
    following = [process.stdout for process in waiting[:3] if process.stdout is not None]
    for output in following:
        assert "begun\n" in iter(output.readline, "")
    kill_client(folder)
    for output in following:  # what Modal has, from the beginning
        assert "begun\n" in iter(output.readline, "")
    assert call("runs", "cancel", "--at-once", run_id).returncode == 0
    for process, code in zip(waiting, (130, 0, 130, 130), strict=True):
        rest, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == code, rest + errors
    assert rest == f"{run_id}  cancelled\n"  # of `wait`, which shows no output
    assert folder.read_result().status is RunStatus.CANCELLED


def test_a_run_that_is_followed_can_be_cancelled_when_its_client_is_killed(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = detached(call)
    monkeypatch.chdir(tmp_path)
    same: dict[str, Any] = {"run_id": folder.path.name, "seed": folder.read_spec().seed}
    with ModalBackend() as backend:
        handle = submit_experiment("slow.slow", backend=backend, observer=Recorder(), **same)
        kill_client(folder)
        handle.cancel(at_once=True)
        assert handle.result(WAIT_S).status is RunStatus.CANCELLED


def test_a_result_that_has_expired_on_modal_is_taken_from_the_volume(
    modal_emulator: Emulator, call: Call
) -> None:
    folder = detached(call, "seconds=0.5")
    kill_client(folder)
    wait_until(
        lambda: (
            containers_of(modal_emulator, folder)
            and not any(c.running_input_ids for c in containers_of(modal_emulator, folder))
        ),
        "the end of the run",
    )
    modal_emulator.age_results(8 * 86_400)
    done = call("runs", "follow", folder.path.name)
    assert done.returncode == 0, done.stderr
    result = load_run(folder.path.name)
    assert (result.status, result.results) == (RunStatus.SUCCESS, "done")
    assert result.cost["estimate_usd"] > 0
    assert folder.log_file.read_text() == "begun\n"


@pytest.mark.parametrize("has_client", [True, False], ids=["client", "no client"])
def test_cancelling_stops_the_container(
    modal_emulator: Emulator, call: Call, has_client: bool
) -> None:
    folder = detached(call)
    wait_until(lambda: "begun" in folder.log_file.read_text(), "the beginning of the run")
    if not has_client:
        kill_client(folder)
    done = call("runs", "cancel", folder.path.name)
    assert (done.returncode, done.stdout) == (0, f"{folder.path.name}  cancelled\n"), done.stderr
    assert folder.read_result().status is RunStatus.CANCELLED
    # an ephemeral app without a client goes, too
    wait_until(
        lambda: all(each.state == "ended" for each in containers_of(modal_emulator, folder)),
        "the end of the container",
    )


def interrupted(modal_emulator: Emulator, folder: Path, *arguments: str) -> str:
    """Press Ctrl-C once a run has begun; return what the command says on stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "ml_experiments", "run", *arguments],
        cwd=folder,
        env={**os.environ, **modal_emulator.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "begun\n"
        client.send_signal(signal.SIGINT)
        _, said = client.communicate(timeout=60)
    assert client.returncode == 130, said
    return said


def test_ctrl_c_leaves_the_run_alone_if_asked_to(
    modal_emulator: Emulator, call: Call, tmp_path: Path
) -> None:
    command = ["slow.slow", "seconds=3", "--backend", "modal", "--on-interrupt", "detach"]
    said = interrupted(modal_emulator, tmp_path, *command)
    assert "goes on; come back to it with:\n  ml-experiments runs follow" in said
    done = call("runs", "follow", "last")
    assert done.returncode == 0, done.stderr
    assert "success" in done.stdout


@pytest.mark.parametrize("where", [(), ("--backend", "modal")], ids=["here", "on Modal"])
def test_ctrl_c_says_what_was_kept(
    modal_emulator: Emulator, tmp_path: Path, where: tuple[str, ...]
) -> None:
    (tmp_path / "keeps.py").write_text(
        "import time\n"
        "from ml_experiments import current_run\n"
        "def keeps():\n"
        "    run = current_run()\n"
        "    for step in range(2):\n"
        "        run.log({'loss': 1.0}, step=step)\n"
        "        run.save_checkpoint({'step': step}, step=step)\n"
        "    print('begun', flush=True)\n"
        "    try:\n"
        "        time.sleep(600)\n"
        "    except KeyboardInterrupt:\n"
        "        (run.output_dir / 'partial.txt').write_text('partial')\n"
        "        raise\n"
    )
    said = interrupted(modal_emulator, tmp_path, "keeps.keeps", *where)
    kept = "kept: 1 artifact, 2 entries of metrics, 2 checkpoints"
    assert f"{kept}; go on with: ml-experiments runs resume 2" in said


def test_a_run_that_has_ended_is_seen_in_the_list_and_brought_here(
    modal_emulator: Emulator, call: Call
) -> None:
    folder = detached(call, "seconds=0.5")
    kill_client(folder)
    wait_until(
        lambda: not any(c.running_input_ids for c in containers_of(modal_emulator, folder)),
        "the end of the run",
    )

    def listed() -> list[str]:
        rows = json.loads(call("runs", "list", "--json").stdout)
        return [row["status"] for row in rows]

    wait_until(lambda: listed() == ["success"], "the status of the run there")
    assert json.loads(call("runs", "list", "--json", "--offline").stdout)[0]["status"] != "success"
    assert f"{folder.path.name}  success\n" in call("runs", "sync").stdout
    result = folder.read_result()
    assert result.results == "done"
    assert result.cost["estimate_usd"] > 0
    assert call("runs", "sync").stdout == "everything that is on Modal is here\n"


def test_another_machine_finds_the_runs_of_an_account(
    modal_emulator: Emulator, call: Call, tmp_path: Path, runs_dir: Path
) -> None:
    ended, goes_on = detached(call, "seconds=0.1"), detached(call)
    assert call("runs", "wait", ended.path.name).returncode == 0
    wait_until(lambda: "begun" in goes_on.log_file.read_text(), "the beginning of the run")
    kill_client(goes_on)
    kept = tmp_path / "machine-a"
    runs_dir.rename(kept)  # from here on, the runs folder is that of another machine
    # Modal stores what a container has written every few seconds
    wait_until(
        lambda: goes_on.path.name in call("runs", "sync", "--dry-run").stdout, "the run there"
    )
    odd = "20260101-000000-0000005"  # without a spec, and before the others
    with runs_volume().batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(b"{}"), f"/{odd}/result.json")
    try:
        synced = call("runs", "sync")
    finally:
        runs_volume().remove_file(f"/{odd}", recursive=True)
    assert (synced.returncode, odd in synced.stderr) == (2, True)
    assert set(synced.stdout.splitlines()) >= {
        f"{ended.path.name}  success",
        f"{goes_on.path.name}  running",
    }
    assert RunFolder(runs_dir / ended.path.name).read_result().results == "done"
    (runs_dir / ended.path.name / "log.txt").unlink()
    assert call("runs", "pull", ended.path.name).returncode == 0
    assert (runs_dir / ended.path.name / "log.txt").read_text() == "begun\n"
    done = call("runs", "cancel", goes_on.path.name)
    assert done.stdout == f"{goes_on.path.name}  cancelled\n", done.stderr
    missing = call("runs", "pull", "20260101-000000-0000001")
    assert missing.returncode == 2
    assert "has no run '20260101-000000-0000001'" in missing.stderr
