"""The commands `ml-experiments emulator run` and `serve`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.emulator_command import COMMAND, emulator_run

pytestmark = pytest.mark.usefixtures("without_modal")


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


SPAWN = (
    "import sys, modal\n"
    "from deployed_app import app, sleep\n"
    "with app.run(detach=True):\n"
    "    print(sleep.spawn(float(sys.argv[1])).object_id)\n"
)


def test_run_waits_for_the_calls_that_were_detached(tmp_path: Path) -> None:
    state = ["--state", str(tmp_path / "state")]
    done = emulator_run(*state, "--", sys.executable, "-c", SPAWN, "1")
    call_id = done.stdout.strip()
    assert f"waits for what was detached: sleep ({call_id}). Ctrl-C ends it." in done.stderr
    code = f"import modal; print(modal.FunctionCall.from_id('{call_id}').get())"
    assert emulator_run(*state, "--", sys.executable, "-c", code).stdout.strip() == "slept"


def test_run_says_which_detached_calls_it_ends() -> None:
    done = emulator_run("--end-detached", "--", sys.executable, "-c", SPAWN, "600")
    call_id = done.stdout.strip()
    assert f"ends what was detached: sleep ({call_id}).\n" in done.stderr


def run_tick(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, "tick", *arguments], capture_output=True, text=True)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator, connected(emulator):
        yield emulator


def test_tick_calls_what_has_a_schedule(emulator: Emulator) -> None:
    app = modal.App("scheduled")
    for name in ("hourly", "daily"):
        app.function(serialized=True, name=name, schedule=modal.Period(hours=1))(lambda: "ran")
    assert "No running app has a function with a schedule" in run_tick().stderr
    with app.run():
        both = run_tick().stdout.split()
        assert [modal.FunctionCall.from_id(each).get(timeout=60) for each in both] == ["ran"] * 2
        (daily,) = run_tick("daily").stdout.split()
        modal.FunctionCall.from_id(daily).get(timeout=60)
        assert len(emulator.calls("daily")) == 2
        (hourly,) = emulator.tick("hourly")
        modal.FunctionCall.from_id(hourly).get(timeout=60)
        missing = run_tick("weekly")
        assert missing.returncode == 1
        assert "No running app has a function weekly with a schedule" in missing.stderr


def test_tick_needs_to_know_the_server() -> None:
    done = run_tick()
    assert done.returncode == 2
    assert "set the variables that `modal-emulator serve` prints" in done.stderr
