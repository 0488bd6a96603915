"""The commands `ml-experiments emulator run` and `serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_emulator import Emulator
from tests.support.waiting import wait_until

MODAL_APPS = Path(__file__).parent / "modal_apps"
COMMAND = [sys.executable, "-m", "modal_emulator"]


@pytest.fixture
def without_modal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Forget the session's emulator: each command brings its own."""
    for name in list(os.environ):
        if name.startswith("MODAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", root)


pytestmark = pytest.mark.usefixtures("without_modal")


def emulator_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "run", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=MODAL_APPS,
    )


def test_run_gives_a_modal_command_a_server() -> None:
    done = emulator_run("--", "modal", "run", "deployed_app.py::main")
    assert done.returncode == 0, done.stderr
    assert "the answer times n: 84" in done.stdout


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_run_ends_with_the_commands_exit_code(code: str, expected: int) -> None:
    assert emulator_run("--", sys.executable, "-c", code).returncode == expected


def test_run_passes_the_commands_own_options_on() -> None:
    code = "import sys; print(sys.argv[1:])"
    done = emulator_run("--", sys.executable, "-c", code, "--state", "x", "--help")
    assert done.stdout.strip() == "['--state', 'x', '--help']"


@pytest.mark.slow
def test_run_keeps_state_between_two_runs(tmp_path: Path) -> None:
    state = ["--state", str(tmp_path / "state")]
    done = emulator_run(*state, "--", "modal", "deploy", "deployed_app.py")
    assert done.returncode == 0, done.stdout + done.stderr
    code = "import modal; print(modal.Function.from_name('deployed', 'answer').remote())"
    assert emulator_run(*state, "--", sys.executable, "-c", code).stdout.strip() == "42"


def test_run_arms_the_faults_that_are_asked_for() -> None:
    code = (
        "import modal\n"
        "from disturbed_app import app, on_gpu\n"
        "with app.run():\n"
        "    print(on_gpu.remote())\n"
    )
    faults = ["--limit-gpu", "H200=1", "--limit-gpu", "L40S=0", "--fail-rpc", "FunctionMap"]
    done = emulator_run(*faults, "--", sys.executable, "-c", code)
    assert done.stdout.strip() == "T4", done.stderr
    started = time.monotonic()
    assert emulator_run("--delay-rpc", "FunctionMap=4", "--", sys.executable, "-c", code).stdout
    assert time.monotonic() - started > 4


def test_run_fills_a_volume_that_the_command_creates() -> None:
    code = (
        "from disturbed_app import app, fill\n"
        "with app.run():\n"
        "    try:\n"
        "        fill.remote(100_000)\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    done = emulator_run("--full-volume", "disturbed=1000", "--", sys.executable, "-c", code)
    assert done.stdout.strip() == "No space left on device", done.stderr


@pytest.mark.slow
def test_run_preempts_and_reruns_an_input() -> None:
    code = "from disturbed_app import app, nap\nwith app.run():\n    nap.remote(1)\nprint('done')\n"
    faults = ["--preempt-input", "1", "--after", "0.2", "--grace", "5", "--verbose"]
    done = emulator_run(*faults, "--", sys.executable, "-c", code)
    assert done.stdout.strip() == "done", done.stderr
    assert "preempted" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit-gpu", "H1000=0", "--", "true"], "did you mean H100"),
        (["--limit-gpu", "H100", "--", "true"], "not of the form NAME=NUMBER"),
        (["--fail-rpc", "FunctionMap:x", "--", "true"], "not a whole number"),
        (["--fail-rpc", "Nope", "--", "true"], "not an RPC"),
        (["--after", "1", "--", "true"], "--after has an effect with --preempt-input or"),
        (["--kill-input", "1", "--grace", "1", "--", "true"], "--grace has an effect with"),
        (["--", "no-such-program"], 'no command "no-such-program"'),
    ],
)
def test_run_refuses_what_it_does_not_understand(arguments: list[str], message: str) -> None:
    done = emulator_run(*arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "-m", "modal_emulator"],
        [str(Path(sys.executable).with_name("modal-emulator"))],
        [str(Path(sys.executable).with_name("ml-experiments")), "emulator"],
    ],
    ids=["module", "script", "of ml-experiments"],
)
def test_each_spelling_of_the_command_words_its_errors(command: list[str]) -> None:
    done = subprocess.run(
        [*command, "run", "--limit-gpu", "H100=0", "--fail-rpc", "Nope", "--", "true"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (2, "", False)
    assert 'Error: "Nope" is not an RPC of the modal client' in done.stderr


def test_run_refuses_a_file_that_is_no_program(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.touch(mode=0o700)
    done = emulator_run("--", str(program))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"{program} can't be started: Exec format error." in done.stderr


def test_a_newer_installed_modal_is_refused_with_the_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tmp_path / "modal-1.7.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: modal\nVersion: 1.7.0\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}")
    done = emulator_run("--", "true")
    assert done.returncode != 0
    assert "modal 1.7.0" in done.stderr
    assert 'pip install "modal>=1.6.0,<1.7"' in done.stderr


def test_two_servers_cannot_share_a_state_folder(tmp_path: Path) -> None:
    with Emulator(tmp_path):
        done = emulator_run("--state", str(tmp_path), "--", "true")
    assert done.returncode != 0
    assert "Another emulator uses the state folder" in done.stderr
    assert emulator_run("--state", str(tmp_path), "--", "true").returncode == 0


def test_a_port_that_is_taken_is_an_error() -> None:
    with Emulator() as emulator:
        port = emulator.environment["MODAL_SERVER_URL"].rpartition(":")[2]
        done = subprocess.run(
            [*COMMAND, "serve", "--port", port], capture_output=True, text=True, timeout=60
        )
    assert done.returncode != 0
    assert "address already in use" in done.stderr.lower()


def test_a_stopped_emulator_says_so() -> None:
    emulator = Emulator()
    with emulator:
        assert emulator.functions() == []
    with pytest.raises(RuntimeError, match="not running"):
        emulator.functions()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--state", str(tmp_path / "state")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    exports: dict[str, str] = {}
    while "MODAL_EMULATOR_CONTROL_URL" not in exports:
        line = process.stdout.readline()
        assert line, "the server ended"
        name, _, value = line.removeprefix("export ").strip().partition("=")
        exports[name] = value.strip("'")
    yield process, exports
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_serve_prints_exports_that_work_and_stops_on_sigint(
    served: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    process, exports = served
    done = subprocess.run(
        [sys.executable, "-m", "modal", "run", "deployed_app.py::main"],
        env={**os.environ, **exports},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=MODAL_APPS,
    )
    assert "the answer times n: 84" in done.stdout, done.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of the killed")
def test_containers_do_not_outlive_a_killed_server(
    served: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    process, exports = served
    code = (
        "import modal, disturbed_app\n"
        "disturbed_app.app.deploy()\n"
        "modal.Function.from_name('disturbed', 'nap').spawn(600)\n"
    )
    environment = {**os.environ, **exports}
    subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=MODAL_APPS, timeout=120, check=True
    )

    def running_pids() -> list[int]:
        request = urllib.request.Request(
            f"{exports['MODAL_EMULATOR_CONTROL_URL']}/containers",
            headers={"Authorization": f"Bearer {exports['MODAL_TOKEN_SECRET']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [each["pid"] for each in json.load(answer) if each["running_input_ids"]]

    wait_until(running_pids, "the start of the input")
    [pid] = running_pids()
    process.kill()
    wait_until(lambda: not is_alive(pid), "the end of the container")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended may be waiting for its parent to notice."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_serve_listens_on_loopback_only(
    served: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    _, exports = served
    port = int(exports["MODAL_SERVER_URL"].rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    own_address = socket.gethostbyname(socket.gethostname())
    if own_address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection((own_address, port), timeout=5)


@pytest.mark.slow
def test_the_pytest_plugin_serves_a_users_own_tests(tmp_path: Path) -> None:
    (tmp_path / "my_app.py").write_text(
        "import modal\n"
        "app = modal.App('mine')\n"
        "@app.function(gpu='A10')\n"
        "def square(x):\n"
        "    return x * x\n"
    )
    (tmp_path / "test_my_app.py").write_text(
        "import my_app\n"
        "def test_square(modal_emulator):\n"
        "    with my_app.app.run():\n"
        "        assert my_app.square.remote(3) == 9\n"
        "    assert modal_emulator.functions('square')[0].gpus == ('A10',)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert "1 passed" in done.stdout, done.stdout
