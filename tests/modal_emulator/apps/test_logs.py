"""What containers print: live, by call, and afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import modal
import pytest

from modal_emulator import Emulator
from tests.support.waiting import wait_until

RunModal = Callable[..., "subprocess.CompletedProcess[str]"]
APP = "deployed_app.py"


@pytest.fixture(scope="module", autouse=True)
def _deployed(modal_emulator_server: Emulator) -> None:
    path = Path(__file__).parents[1] / "modal_apps" / APP
    subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "--name", "logged", str(path)],
        check=True,
        capture_output=True,
        timeout=120,
    )


def logged(name: str) -> modal.Function[..., str, str]:
    return modal.Function.from_name("logged", name)


def test_the_logs_of_a_call_are_its_own() -> None:
    first, second = logged("say").spawn("one", 3), logged("say").spawn("two", 2)
    first.get()
    second.get()
    assert [entry.message.strip() for entry in first.logs.tail() if entry.source == "stdout"] == [
        "one 0",
        "one 1",
        "one 2",
    ]
    texts = "".join(entry.message for entry in second.logs.tail())
    assert "two 1" in texts
    assert "one" not in texts


def test_stderr_is_told_from_stdout() -> None:
    call = logged("say").spawn("word")
    call.get()
    found = {entry.message.strip(): entry.source for entry in call.logs.tail()}
    assert found == {"word 0": "stdout", "to stderr": "stderr"}
    assert [e.message.strip() for e in call.logs.tail(source="stderr")] == ["to stderr"]


def test_the_logs_of_a_running_call_are_streamed_before_it_ends() -> None:
    call = logged("sleep").spawn(600)
    for entry in call.logs.stream(timeout=60):
        assert entry.message.strip() == "sleeping"
        break
    with pytest.raises(TimeoutError):
        call.get(timeout=0)
    call.cancel(terminate_containers=True)


def test_a_stream_of_logs_ends_with_the_call() -> None:
    call = logged("say").spawn("end", 2)
    lines = [entry.message.strip() for entry in call.logs.stream(timeout=60)]
    assert lines[:2] == ["end 0", "end 1"]


def test_modal_run_shows_logs_while_the_function_runs(modal_emulator: Emulator) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "modal", "run", f"{APP}::sleep", "--seconds", "600"],
        env={**os.environ, **modal_emulator.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[1] / "modal_apps",
    )
    assert process.stdout is not None
    try:
        assert any(line.strip() == "sleeping" for line in iter(process.stdout.readline, ""))
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()


def test_app_logs_shows_the_logs_of_a_stopped_app(
    run_modal: RunModal, modal_emulator: Emulator
) -> None:
    run_modal("run", "-q", f"{APP}::say", "--word", "afterwards")
    app_id = modal_emulator.calls("say")[-1].app_id
    wait_until(
        lambda: any(e.app_id == app_id and e.state == "stopped" for e in modal_emulator.apps()),
        "the end of the app",
    )
    assert "afterwards 0" in run_modal("app", "logs", app_id).stdout


def test_app_logs_finds_text_in_a_time_range(run_modal: RunModal) -> None:
    logged("say").remote("haystack", 30)
    # Ranges end at a whole second.
    time.sleep(1.1)
    found = run_modal("app", "logs", "logged", "--since", "1h", "--search", "haystack 2").stdout
    assert len(re.findall(r"haystack 2\d?", found)) == 11
    assert "haystack 1" not in found


def test_text_without_a_line_end_is_not_lost(modal_emulator: Emulator) -> None:
    app = modal.App("partial")

    @app.function(serialized=True, single_use_containers=True)
    def write() -> None:
        sys.stdout.write("no line end")
        sys.stdout.flush()

    with app.run():
        write.remote()
        app_id = app.app_id
    wait_until(
        lambda: "no line end" in [line.text for line in modal_emulator.logs(app_id)], "the text"
    )


def test_a_progress_bar_is_streamed_as_it_moves(modal_emulator: Emulator) -> None:
    app = modal.App("progress")

    @app.function(serialized=True)
    def work() -> None:
        for percent in (10, 20):
            sys.stderr.write(f"\r{percent}%")
        sys.stderr.write("\n")

    with app.run():
        work.remote()
        app_id = app.app_id
    texts = [line.text for line in modal_emulator.logs(app_id)]
    assert [text.strip() for text in texts if text.strip()] == ["10%", "20%"]


def test_a_flood_of_output_is_kept_and_other_calls_go_on(modal_emulator: Emulator) -> None:
    app = modal.App("flood")

    @app.function(serialized=True)
    def flood() -> None:
        for i in range(20_000):
            print(i)
        sys.stdout.write("x" * 300_000)
        sys.stdout.flush()

    with app.run():
        call = flood.spawn()
        assert logged("say").remote("meanwhile") == "meanwhile"
        call.get()
        app_id = app.app_id
    wait_until(
        lambda: any(e.app_id == app_id and e.state == "stopped" for e in modal_emulator.apps()),
        "the end of the app",
    )
    text = "".join(line.text for line in modal_emulator.logs(app_id))
    assert text == "".join(f"{i}\n" for i in range(20_000)) + "x" * 300_000


def test_a_flood_of_output_is_printed_whole_and_in_order_by_modal_run(run_modal: RunModal) -> None:
    lines = 50_000
    printed = run_modal("run", "flood_app.py::flood", "--lines", f"{lines}").stdout
    numbers = [int(number) for number in re.findall(r"^line (\d+) x+$", printed, re.MULTILINE)]
    assert numbers == list(range(lines))


def test_a_traceback_is_in_the_logs_of_its_call() -> None:
    call = logged("fail").spawn()
    with pytest.raises(ValueError, match="on purpose"):
        call.get()
    assert "ValueError: on purpose" in "".join(entry.message for entry in call.logs.tail())
