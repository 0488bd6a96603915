"""How the outcome of a run on Modal comes here, and what happens when it can't come yet."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.backends.modal.fetching import has_result_there
from ml_experiments.backends.modal.mounts import runs_volume
from ml_experiments.backends.modal.run_handle import ModalRunHandle
from ml_experiments.errors import Error, RunFolderError, RunNotCollectedError
from ml_experiments.runner.resume import attach_run, resume_run
from ml_experiments.runner.run import run_experiment, submit_experiment
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus
from ml_experiments.runs.spec import RunSpec
from modal_emulator import Emulator
from tests.support.command import COMMAND
from tests.support.cut_connection import CutConnection
from tests.support.modal_experiments import Counts, Greet, Prints
from tests.support.modal_runs import WAIT_S, Recorder, folder_of, run_command
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def backend(modal_emulator_server: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


def test_a_run_survives_its_client_and_is_collected_later(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    script = tmp_path / "client.py"
    script.write_text(
        textwrap.dedent("""
            import os, signal, threading, time
            from ml_experiments.backends.modal.backend import ModalBackend
            from ml_experiments.execution.observer import Observer
            from ml_experiments.runner.run import submit_experiment
            from slow_one import Slow

            class Killer(Observer):
                def log(self, spec, data):
                    os.kill(os.getpid(), signal.SIGKILL)

            with ModalBackend() as backend:
                submit_experiment(Slow, {}, backend=backend, observer=Killer()).result()
        """)
    )
    (tmp_path / "slow_one.py").write_text(
        textwrap.dedent("""
            import time

            class Slow:
                def __init__(self, config): ...
                def run(self):
                    print("begun", flush=True)
                    time.sleep(4)
                    print("done", flush=True)
                    return {"finished": True}
        """)
    )
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, timeout=WAIT_S, check=False)
    assert done.returncode == -9
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    folder = RunFolder(path)
    assert folder.outcome().status is RunStatus.RUNNING
    shown = subprocess.run(
        [sys.executable, "-m", "ml_experiments", "runs", "show", "last"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert folder.read_manifest().to_dict()["modal"]["app_url"] in shown
    assert f"ml-experiments runs follow {path.name}" in shown
    with ModalBackend() as backend, pytest.raises(Error, match=f"runs follow {path.name}"):
        resume_run(folder, backend=backend)

    class Looks(Recorder):
        def log(self, spec: RunSpec, data: bytes) -> None:
            super().log(spec, data)
            logs.add(folder.log_file.read_text())

    logs: set[str] = set()
    recorder = Looks()
    with ModalBackend() as backend:
        result = backend.attach(folder, recorder).result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results == {"finished": True}
    assert recorder.lines == b"begun\ndone\n"
    assert logs == {"begun\n"}  # what the lost client had written, once
    assert folder.log_file.read_text() == "begun\ndone\n"
    assert folder.outcome().status is RunStatus.SUCCESS


def killed_client(tmp_path: Path, runs_dir: Path, method: str, source: str) -> RunFolder:
    """Run a client that is killed as it calls a method; return the folder of its run."""
    (tmp_path / "client.py").write_text(
        textwrap.dedent(f"""
            import os, signal, sys
            from ml_experiments import ModalBackend, submit_experiment
            from ml_experiments.backends.modal.run_handle import ModalRunHandle

            def die(self, *arguments, function_call_id="", app_url=None):
                if app_url is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                self._update_place(app_url=app_url)

            ModalRunHandle.{method} = die
            with ModalBackend() as backend:
                options = {{"backend": backend, "run_id": {tmp_path.name!r}}}
                submit_experiment("counted.py:run", {{}}, **options).result()
        """)
    )
    (tmp_path / "counted.py").write_text(source)
    command = [sys.executable, "client.py"]
    done = subprocess.run(command, cwd=tmp_path, timeout=WAIT_S, check=False)
    assert done.returncode == -9
    return RunFolder(runs_dir / tmp_path.name)


def test_a_run_whose_client_was_killed_before_it_knew_the_call_is_found_and_not_run_again(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    # the call has been made, and its id is about to be recorded
    folder = killed_client(tmp_path, runs_dir, "_note_place", "def run(): return 'ran'\n")
    assert folder.outcome().status is RunStatus.PENDING
    with ModalBackend() as backend:
        volume = runs_volume()
        wait_until(lambda: has_result_there(volume, folder), "the end of the run")
        with pytest.raises(Error, match="nothing to resume"):
            resume_run(folder, backend=backend)
    assert folder.read_result().results == "ran"
    assert len(folder.read_result().attempts) == 1


def test_what_an_earlier_attempt_has_left_is_not_taken_for_a_later_ones(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    code = """
        import socket
        from ml_experiments import current_run
        def run(port: int):
            if current_run().latest_checkpoint() is None:
                current_run().save_checkpoint({}, step=0)
                raise ValueError("the first attempt")
            with socket.create_connection(("127.0.0.1", port)) as test:
                return test.recv(100).decode()
    """
    (tmp_path / "twice.py").write_text(textwrap.dedent(code))
    with socket.create_server(("127.0.0.1", 0)) as server, ModalBackend() as backend:
        server.settimeout(WAIT_S)
        config = {"port": server.getsockname()[1]}
        first = run_experiment(f"{tmp_path}/twice.py:run", config, backend=backend)
        folder = folder_of(first)
        # one that is ended before its container has written anything
        handle = resume_run(folder, backend=backend, observer=Recorder())
        handle.cancel(at_once=True)
        assert handle.result(WAIT_S).status is RunStatus.CANCELLED
        # one that is looked for before its container has written anything
        handle = resume_run(folder, backend=backend, observer=Recorder())
        done = run_command(modal_emulator, tmp_path, "runs", "pull", first.run_id)
        assert (done.returncode, done.stderr) == (0, "")
        assert not folder.result_file.exists()
        connection, _ = server.accept()
        with connection:
            connection.send(b"the second one")
        result = handle.result(WAIT_S)
    assert result.results == "the second one"
    assert [a.status for a in result.attempts] == ["error", "cancelled", "success"]


def test_a_run_whose_client_was_killed_before_it_knew_the_call_is_followed_and_cancelled(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    forever = "import time\ndef run():\n    print('begun')\n    while True: time.sleep(0.05)\n"
    folder = killed_client(tmp_path, runs_dir, "_note_place", forever)
    observer = Recorder()
    with ModalBackend() as backend:
        volume = runs_volume()
        wait_until(lambda: volume.listdir(f"/{folder.path.name}"), "the beginning there")
        handle = attach_run(folder, backend=backend, observer=observer)
        wait_until(lambda: b"begun" in observer.lines, "its output")
        handle.cancel()
        assert handle.result(WAIT_S).status is RunStatus.CANCELLED


def test_a_run_whose_client_was_killed_after_it_had_claimed_the_id_is_resumed(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    folder = killed_client(tmp_path, runs_dir, "see_through", "def run(): return 'ran'\n")
    with ModalBackend() as backend:
        waiting = Recorder()
        handle = backend.attach(folder, waiting)
        wait_until(lambda: waiting.notices, "what it waits for")
        handle.cancel()
        with pytest.raises(RunNotCollectedError, match="has not begun on Modal"):
            handle.result(WAIT_S)
        assert resume_run(folder, backend=backend).result(WAIT_S).results == "ran"


def test_a_result_that_expires_before_it_is_collected_is_taken_from_the_volume(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    returned = run_experiment(Greet, {}, backend=backend, observer=Recorder())
    folder = folder_of(returned)
    folder.result_file.unlink()
    modal_emulator.age_results(8 * 86_400)
    handle = ModalRunHandle(folder.read_spec(), folder, Recorder())
    result = handle.collect()
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results["seed"] == returned.results["seed"]


def test_a_run_that_never_reached_modal_cannot_be_collected(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    result = run_experiment(Greet, {}, backend="local", observer=Recorder())
    with pytest.raises(RunFolderError, match="never handed over to Modal"):
        backend.attach(folder_of(result), Recorder())


def test_a_run_whose_client_was_killed_before_modal_had_it_is_an_error(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    modal_emulator.delay_rpc("ImageGetOrCreate", 300)
    (tmp_path / "quick.py").write_text("def train(config): return 1\n")
    client = subprocess.Popen(
        [sys.executable, "-m", "ml_experiments", "run", "quick.train", "--gpu", "t4"],
        env={**os.environ, **modal_emulator.environment},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert client.stderr is not None
    with client:
        while "preparing the image" not in client.stderr.readline():
            pass
        [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
        assert RunFolder(path).outcome().status is RunStatus.PENDING
        client.kill()
    outcome = RunFolder(path).outcome()
    assert outcome.status is RunStatus.ERROR
    assert outcome.error is not None
    assert "ended without leaving a result" in outcome.error.message
    modal_emulator.clear_faults()
    with ModalBackend() as backend:
        handle = resume_run(RunFolder(path), backend=backend, observer=Recorder())
        assert handle.result(WAIT_S).results == 1


def test_a_run_is_pending_until_its_container_has_it_and_running_then(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    recorder = Recorder()
    modal_emulator.delay_starts(2)
    handle = submit_experiment(Counts, {"seconds": 2}, backend=backend, observer=recorder)
    assert handle.folder.outcome().status is RunStatus.PENDING
    assert recorder.printed.wait(WAIT_S)
    assert handle.folder.outcome().status is RunStatus.RUNNING
    assert handle.result(WAIT_S).status is RunStatus.SUCCESS
    assert handle.folder.outcome().status is RunStatus.SUCCESS


def test_a_run_whose_files_could_not_be_fetched_is_not_lost(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    # the first one is the container's
    modal_emulator.fail_rpc("VolumeListFiles2", nth=2, status="PERMISSION_DENIED")
    (tmp_path / "quick.py").write_text("def train(config): return {'x': 1}\n")
    done = run_command(modal_emulator, tmp_path, "run", "quick.train", "--gpu", "t4")
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    # 2 would say that nothing was started
    assert done.returncode == 1, done.stderr
    assert f"run {path.name} ended with status success" in done.stderr
    assert f"ml-experiments runs follow {path.name}" in done.stderr

    with ModalBackend() as backend:
        result = attach_run(RunFolder(path), backend=backend, observer=Recorder()).result(WAIT_S)
    assert result.results == {"x": 1}


def test_a_disk_that_is_too_small_for_the_files_is_told_as_one(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "large.py").write_text(
        "from ml_experiments import current_run\n"
        "def train(config):\n"
        "    (current_run().output_dir / 'large.bin').write_bytes(b'x' * 9_000_000)\n"
        "    return 1\n"
    )
    limit = ("prlimit", "--fsize=6000000")  # bytes in a file
    run = ("run", "large.train", "--gpu", "t4")
    done = run_command(modal_emulator, tmp_path, *run, before=limit)
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert "this machine's disk is the cause" in done.stderr
    assert f"ml-experiments runs follow {path.name}" in done.stderr

    with ModalBackend() as backend:
        result = attach_run(RunFolder(path), backend=backend, observer=Recorder()).result(WAIT_S)
    assert result.results == 1
    assert (path / "artifacts" / "large.bin").stat().st_size == 9_000_000


def test_a_lost_server_leaves_word_how_to_collect_the_run(tmp_path: Path, runs_dir: Path) -> None:
    """The server is killed while the run goes on, and with it all that could answer."""
    (tmp_path / "slow_one.py").write_text(
        "import time\ndef train(config):\n    print('begun', flush=True)\n    time.sleep(60)\n"
    )
    serve = subprocess.Popen(
        [sys.executable, "-m", "ml_experiments", "emulator", "serve"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert serve.stdout is not None
    environment = dict(os.environ)
    for line in serve.stdout:
        name, _, value = line.removeprefix("export ").strip().partition("=")
        environment[name] = value
        if name == "MODAL_EMULATOR_CONTROL_URL":
            break
    impatient = (
        "from ml_experiments.backends.modal import run_handle\n"
        "from ml_experiments.cli.main import main\n"
        "run_handle._MAX_AWAY_S = 1\n"
        "main()\n"
    )
    with (tmp_path / "out.txt").open("w+") as out:
        client = subprocess.Popen(
            [sys.executable, "-c", impatient, "run", "slow_one.train", "--gpu", "t4"],
            env=environment,
            cwd=tmp_path,
            stdout=out,
            stderr=out,
        )
        try:
            wait_until(
                lambda: "begun" in Path(out.name).read_text() or client.poll() is not None,
                "the run's first line",
            )
        finally:
            serve.kill()
            serve.wait()
        code = client.wait(WAIT_S)
    said = Path(out.name).read_text()
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    assert code == 1, said
    assert "the connection to Modal was lost" in said
    assert f"ml-experiments runs follow {path.name}" in said
    assert "Traceback" not in said
    assert RunFolder(path).outcome().status is RunStatus.RUNNING


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_while_the_image_is_built_ends_the_run_at_once(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path, options: tuple[str, ...]
) -> None:
    modal_emulator.delay_rpc("ImageGetOrCreate", 300)
    (tmp_path / "quick.py").write_text("def train(config): return 1\n")
    err = tmp_path / "err.txt"
    with err.open("w") as stderr:
        command = [sys.executable, "-m", "ml_experiments", "run", "quick.train", "--gpu", "t4"]
        client = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **modal_emulator.environment},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    wait_until(lambda: "preparing the image" in err.read_text(), "the build of the image")
    client.send_signal(signal.SIGINT)
    out, _ = client.communicate(timeout=60)
    assert client.returncode == 130, err.read_text()
    assert "cancelled" in out
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    assert RunFolder(path).outcome().status is RunStatus.CANCELLED
    if options:
        assert json.loads(out)["run_id"] == path.name


@pytest.mark.parametrize(
    "outage_s", [0.7, pytest.param(20.0, marks=pytest.mark.exhaustive)], ids=["short", "20 s"]
)
def test_a_connection_that_is_lost_again_and_again_ends_no_run(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path, outage_s: float
) -> None:
    between_s = 1.0
    connection = CutConnection(modal_emulator.environment["MODAL_SERVER_URL"])
    (tmp_path / "slow_one.py").write_text(
        "import time\ndef train(seconds: float):\n    print('begun', flush=True)\n"
        "    time.sleep(seconds)\n    return 'whole'\n"
    )
    seconds = 2 * (outage_s + between_s)
    out = tmp_path / "out.txt"
    with out.open("w") as file:
        client = subprocess.Popen(
            [*COMMAND, "run", "slow_one.train", f"seconds={seconds}", "--gpu", "t4"],
            env={**os.environ, **modal_emulator.environment, "MODAL_SERVER_URL": connection.url},
            cwd=tmp_path,
            stdout=file,
            stderr=file,
        )
    wait_until(lambda: "begun" in out.read_text(), "the run's first line")
    for _ in range(2):
        connection.cut()
        time.sleep(outage_s)
        connection.restore()
        time.sleep(between_s)
    assert client.wait(WAIT_S) == 0, out.read_text()
    [path] = [p for p in runs_dir.iterdir() if (p / "spec.json").exists()]
    assert RunFolder(path).outcome().results == "whole"


def test_output_that_comes_too_fast_is_whole_on_disk_and_the_observer_is_told(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    class Slow(Recorder):
        def log(self, spec: object, data: bytes) -> None:
            time.sleep(0.2)

    recorder = Slow()
    result = run_experiment(Prints, {"lines": 5000}, backend=backend, observer=recorder)
    assert len(folder_of(result).log_file.read_text().splitlines()) == 5000
    [notice] = [n for n in recorder.notices if "faster than it could be shown" in n]
    assert str(folder_of(result).log_file) in notice
