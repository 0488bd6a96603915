"""What all commands share."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ml_experiments.cli.main import main
from tests.support.command import COMMAND, ENDS, call

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("debug", [[], ["--debug"]])
@pytest.mark.parametrize(("how", "code"), [("many_lines", 0), ("many_lines_and_fails", 1)])
def test_a_reader_that_has_seen_enough_ends_no_run(
    how: str, code: int, debug: list[str], runs_dir: Path
) -> None:
    command = subprocess.Popen(
        [*COMMAND, "run", ENDS, f"how={how}", *debug],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout is not None
    assert command.stdout.readline() == b"line 0\n"
    command.stdout.close()
    _, stderr = command.communicate(timeout=60)
    (result,) = runs_dir.glob("*/result.json")
    kept = json.loads(result.read_text())
    assert (command.returncode, stderr) == (code, b"")
    assert kept["results"] == (None if code else 100_000)
    log = (result.parent / "log.txt").read_text()
    assert "\nline 99999\n" in log
    assert log.endswith("ValueError: the loss is not a number\n" if code else "line 99999\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_works_where_a_standard_stream_is_closed(closed: str, tmp_path: Path) -> None:
    (tmp_path / "gives.py").write_text("def run(): return 1\n")
    run = f"{' '.join(COMMAND)} run gives.run {closed}"
    done = subprocess.run(
        ["sh", "-c", run], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_an_output_that_can_not_be_written_is_told() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [*COMMAND, "gpus"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    told = "error: the output of this command can't be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, told)


def test_a_very_long_integer_is_shown_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "gives.py").write_text("def run(): return 10**10_000\n")
    done = call("run", "gives.run", cwd=tmp_path)
    assert "an integer of 33,220 bits" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rum"], "did you mean 'run'"),
        (["train.Train"], "write run train.Train"),
        (["list"], "write ml-experiments runs list or ml-experiments cache list"),
        (["runs", "lst"], "did you mean 'list'"),
        (["runs", "attach", "last"], "did you mean 'follow'"),
        (["runs", "costs"], "write ml-experiments costs"),
        (["cache", "delete", "acme/*"], "did you mean 'clear'"),
        (["cache", "list", "--backend", "local"], "did you mean '--local'"),
        (["runs", "list", "--state", "error"], "did you mean '--status'"),
        (["runs", "list", "status=error"], "write --status error"),
        (["runs", "--limit", "3", "list"], "stand behind the name of the command"),
        (["run", "--class", "train.Train"], "no such option '--class'; a field"),
        (["sweep", "shw", "last"], "did you mean 'show'"),
        (["bench", "list"], "write ml-experiments runs list or"),
        (["run", "list"], "the command is ml-experiments runs list or"),
        (["run", "lr=1", "train.Train"], "Class, before any KEY=VALUE"),
    ],
)
def test_wrong_words_are_told_what_is_meant(
    words: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as e:
        main(words)
    assert e.value.code == 2
    assert meant in capsys.readouterr().err


def test_help_lists_every_command_without_importing_it() -> None:
    done = call("--help")
    assert done.returncode == 0
    for command in ("run", "runs", "cache", "gpus", "emulator", "doctor"):
        assert f"  {command} " in done.stdout
