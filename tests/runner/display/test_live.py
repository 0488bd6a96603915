"""What a person sees on a terminal while runs execute."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import COMMAND
from tests.support.terminal import Terminal, Tmux, needs_tmux

pytestmark = pytest.mark.slow

SPINNER = re.compile("[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]")
UP = b"\x1b[1A\x1b[2K"
RESULT_ROWS = ("status ", "run ", "seconds ", "peak memory ", "artifacts ", "run folder ")
# each waits until the test has seen what it has printed
SHOWN = """
import sys, time
from pathlib import Path
from ml_experiments import current_run

def wait_for(name):
    while not Path(name).exists():
        time.sleep(0.01)

def unfinished(how):
    if how == "bar":
        from tqdm import tqdm
        for _ in tqdm(range(1), desc="training"):
            wait_for("go")
    else:
        pieces = {"dots": "..", "percent": "\\r 10%", "emoji": "🚀 学"}
        data = pieces[how].encode()
        for piece in (data[:-1], data[-1:]):
            sys.stdout.buffer.write(piece)
            sys.stdout.flush()
        wait_for("go")
    print("end")

def mixed(steps=3):
    from tqdm import tqdm
    for step in tqdm(range(steps), desc="steps"):
        for _ in tqdm(range(50), desc="batches", leave=False):
            time.sleep(0.01)
        tqdm.write("学習中 🚀 " + str(step) + " " + "x" * 70, file=sys.stdout)
        current_run().progress(step + 1, steps, text="[bold] loss 学" + "y" * 50)
    print("no end", end="")

def waits():
    current_run().progress(1, 2, text="waits")
    print("it waits", flush=True)
    wait_for("go")

def breaks():
    breakpoint()
    return "went on"
"""
SCRIPT = """
import logging, sys, time
from pathlib import Path
from ml_experiments import LocalBackend, Observer, run_experiment, submit_experiment
from shown import mixed, unfinished, waits

if __name__ == "__main__":
    logging.basicConfig(format="%(message)s")
    print("without end", end="", flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shown.py").write_text(SHOWN)
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "70")  # as a parent may have left it
    return tmp_path


def script(folder: Path, *lines: str) -> list[str]:
    (folder / "script.py").write_text(SCRIPT + "".join(f"    {line}\n" for line in lines))
    return [sys.executable, "script.py"]


def shell(command: list[str]) -> str:
    return " ".join(command)


@pytest.mark.parametrize(
    ("how", "shown"),
    [("bar", "training:   0%"), ("dots", ".."), ("percent", " 10%"), ("emoji", "🚀 学")],
)
def test_an_unfinished_line_is_shown_at_once(how: str, shown: str, folder: Path) -> None:
    with Terminal([*COMMAND, "run", "shown.unfinished", f"how={how}"]) as terminal:
        terminal.read_until(shown)
        assert b"end\r\n" not in terminal.shown
        (folder / "go").touch()
        printed = terminal.read_all()
        assert terminal.process.returncode == 0
    assert "end\r\n" in printed
    assert "\\x" not in printed


@needs_tmux
@pytest.mark.parametrize("width", [80, 140])
def test_the_command_leaves_what_was_printed_and_nothing_else(width: int, folder: Path) -> None:
    command = [*COMMAND, "run", "shown.mixed", "--name", "a-name"]
    with Tmux(shell(command), width, folder) as tmux:
        tmux.wait_until(lambda lines: any("1/3 [bold] loss 学yyy" in line for line in lines))
        seen = tmux.screen()
        lines = tmux.wait()
    (status,) = [line for line in seen if SPINNER.search(line)]
    assert re.fullmatch(r". a-name +━.*━ [12]/3 \[bold\] loss 学y+… 0:00:0\d", status)
    lines = [line for line in lines if not line.startswith(RESULT_ROWS)]
    printed = [part for n in range(3) for part in wrapped(f"学習中 🚀 {n} {'x' * 70}", width)]
    assert lines[: len(printed)] == printed
    steps, no_end = lines[len(printed) :]
    assert steps.startswith("steps: 100%|██████████| 3/3 [")
    assert no_end == "no end"


def wrapped(line: str, width: int) -> list[str]:
    """Break a line as a terminal does, which has two columns for each character above U+2000."""
    rows, used = [""], 0
    for character in line:
        columns = 2 if character > "\u2000" else 1
        if used + columns > width:
            rows.append("")
            used = 0
        rows[-1] += character
        used += columns
    return rows


@needs_tmux
@pytest.mark.slow
def test_a_sweep_of_a_script_stays_readable(folder: Path) -> None:
    command = script(
        folder,
        "with LocalBackend(max_workers=4) as backend:",
        "    runs = [submit_experiment(mixed, {'steps': 2}, backend=backend, name=f'run-{n}')",
        "        for n in range(4)]",
        "    while not any(run.folder.log_file.read_text() for run in runs): time.sleep(0.01)",
        "    time.sleep(0.3)  # until there is something to be glued to",
        "    print('from the script')",
        "    logging.warning('a warning')",
        "    print([run.result().status.value for run in runs])",
    )
    with Tmux(shell(command), 140, folder) as tmux:
        tmux.wait_until(lambda lines: sum(bool(SPINNER.search(line)) for line in lines) == 4)
        lines = tmux.wait()
    assert lines[0] == "without end"
    assert {"from the script", "a warning"} <= set(lines)
    assert lines[-1] == str(["success"] * 4)
    for n in range(4):
        own = [line for line in lines if line.startswith(f"[run-{n}] ")]
        prefix = f"[run-{n}] "
        assert own[:2] == [f"{prefix}学習中 🚀 {step} {'x' * 70}" for step in range(2)]
        assert own[2].startswith(f"{prefix}steps: 100%")
        assert own[3:] == [f"{prefix}no end"]
    assert len(lines) == 4 + 4 * 4


def test_a_terminal_that_gets_narrower_keeps_nothing_of_the_status_line(folder: Path) -> None:
    with Terminal([*COMMAND, "run", "shown.waits", "--name", "n" * 40]) as terminal:
        terminal.read_until("0:00:01")
        assert UP not in terminal.shown  # one line of 70 columns
        terminal.resize(30)  # now it is three
        terminal.read_until((UP * 2).decode())
        (folder / "go").touch()
        terminal.read_all()
    assert terminal.shown.count(UP) == 2


def test_a_script_on_a_terminal_shows_what_the_command_shows(folder: Path) -> None:
    with Terminal(script(folder, "run_experiment(waits)", "print('last')")) as terminal:
        terminal.read_until("1/2")
        (folder / "go").touch()
        printed = terminal.read_all()
    assert SPINNER.search(printed)
    assert printed.endswith("last\r\n")


def test_an_observer_of_ones_own_is_all_that_is_called(folder: Path) -> None:
    (folder / "go").touch()
    with Terminal(script(folder, "run_experiment(waits, observer=Observer())")) as terminal:
        assert terminal.read_all() == "without end"


def test_a_pipe_beside_the_terminal_gets_what_is_meant_for_it(folder: Path) -> None:
    (folder / "go").touch()
    command = script(folder, "print()", "run_experiment(waits)", "print('error', file=sys.stderr)")
    with Terminal(command, stdout=subprocess.PIPE) as terminal:
        shown = terminal.read_all()
        assert terminal.process.stdout is not None
        assert terminal.process.stdout.read() == b"without end\nit waits\n"
    assert "it waits" not in shown
    with Terminal(command, stderr=subprocess.PIPE) as terminal:
        shown = terminal.read_all()
        assert terminal.process.stderr is not None
        assert terminal.process.stderr.read() == b"error\n"
    assert "it waits\r\n" in shown


def test_json_is_all_of_standard_output(folder: Path) -> None:
    (folder / "go").touch()
    with Terminal([*COMMAND, "run", "shown.waits", "--json"], stdout=subprocess.PIPE) as terminal:
        shown = terminal.read_all()
        assert terminal.process.stdout is not None
        assert json.loads(terminal.process.stdout.read())["status"] == "success"
    assert "it waits\r\n" in shown


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}])
def test_a_terminal_gets_no_more_than_it_can_show(
    environment: dict[str, str], folder: Path
) -> None:
    (folder / "coloured.py").write_text("def run(): print('\\x1b[31mred\\x1b[0m')\n")
    with Terminal([*COMMAND, "run", "coloured.run"], env=environment) as terminal:
        printed = terminal.read_all()
    output, _, _ = printed.partition("status")
    assert "red\r\n" in output
    assert re.search(r"\x1b\[[\d;]*3\dm", output) is None
    if environment == {"TERM": "dumb"}:
        assert output == "red\r\n"


def test_a_latin_1_terminal_gets_escapes_for_what_it_lacks(folder: Path) -> None:
    environment = {"PYTHONIOENCODING": "latin-1"}
    (folder / "go").touch()
    command = [*COMMAND, "run", "shown.unfinished", "how=emoji"]
    with Terminal(command, env=environment) as terminal:
        printed = terminal.read_all()
        assert terminal.process.returncode == 0
    assert "\\U0001f680 \\u5b66end\r\n" in printed


def test_a_debugger_has_the_terminal_to_itself(folder: Path) -> None:
    with Terminal([*COMMAND, "run", "shown.breaks", "--debug"]) as terminal:
        terminal.read_until("(Pdb) ")
        terminal.write("p 6 * 7\n")
        terminal.read_until("42")
        terminal.write("c\n")
        printed = terminal.read_all()
        assert terminal.process.returncode == 0
    assert "went on" in printed
    before, _, _ = printed.partition("status")
    assert "\x1b" not in before.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
