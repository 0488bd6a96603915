"""`ml-experiments bench`, as a whole process."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from ml_experiments import find_runs
from ml_experiments.cli.main import main
from modal_emulator import Emulator
from tests.support.command import call
from tests.support.modal_runs import run_command

pytestmark = pytest.mark.slow

EXPERIMENT = """
import os, time
from ml_experiments import Experiment, ExperimentConfig


class Draw(Experiment):
    class Config(ExperimentConfig):
        batch_size: int = 1

    setup_fields = ()

    def setup(self):
        self.set_ups = f"{os.getpid()}-{time.monotonic()}"

    def run(self):
        gpu = os.environ.get("MODAL_EMULATOR_GPU")
        if gpu == "T4" and self.config.batch_size > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        time.sleep(0.02 if gpu == "H100" else 0.1)
        return {"images": [0] * self.config.batch_size, "set_up": self.set_ups}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "draw.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def called(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Call the command in this process; return its exit code, and what it printed where."""
    with pytest.raises(SystemExit) as ended:
        main(["bench", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code, *capsys.readouterr()


def test_gpu_types_are_compared_within_a_cap_and_one_without_room_in_memory_is_a_row(
    modal_emulator: Emulator,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ("bench", "draw.Draw", "--gpu", "t4,h100", "--vary", "batch_size=1,4")
    options = ("--repeat", "2", "--per", "results.images", "--max-cost", "3", "--timeout", "2m")
    done = run_command(modal_emulator, project, *command, *options, "--json", "--plot", "plot.png")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    rows = {(row["gpu"], row["overrides"][0]): row for row in report["rows"]}
    assert rows["t4", "batch_size=4"]["status"] == "out of memory"
    assert [row["status"] for row in report["rows"]] == ["measured"] * 3 + ["out of memory"]
    fast = rows["h100", "batch_size=4"]
    assert (fast["runs"], fast["outputs"], fast["is_efficient"]) == (2, 4.0, True)
    assert fast["outputs_per_s"] > 4 * rows["t4", "batch_size=1"]["outputs_per_s"]
    assert 0 < fast["usd_per_output"] < rows["h100", "batch_size=1"]["usd_per_output"]
    assert rows["h100", "batch_size=1"]["start_s"] > 0
    assert (project / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "t4, h100: 4 cases, each with a warm-up and 2 measured runs" in done.stderr
    assert "at most $" in done.stderr
    # all runs of a GPU type in one container, which set up once
    for gpu in ("t4", "h100"):
        runs = find_runs(f"tags.bench == '{report['bench_id']}'", gpu=gpu, status="success")
        assert len({run.results["set_up"] for run in runs}) == 1
        assert len(runs) == (3 if gpu == "t4" else 6)
    _, shown, _ = called(capsys, "show", "last")
    assert shown.splitlines()[0].split() == (
        ["GPU", "type", "batch_size", "images/s", "s", "each", "±", "$", "per", "1000"]
    )
    assert "out of memory  the GPU's memory was too small" in shown
    code, _, says = called(capsys, *command[1:], "--max-cost", "0.01")
    assert code == 2
    assert "the cap of $0.01 is too low, for a run on t4 takes at least" in says
    monkeypatch.setenv("ML_EXPERIMENTS_ASK_ABOVE", "0.01")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    code, _, says = called(capsys, *command[1:])
    assert code == 2
    assert "above the $0.01 of ask_above; nothing was started, and --yes starts" in says


def test_this_machine_is_measured_without_gpu_types(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call("bench", "draw.Draw", "--vary", "batch_size=1,4", "--repeat", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "this machine: 2 cases, each with a warm-up and 1 measured run"
    assert lines[1].startswith("bench 2")
    assert lines[2].startswith("[1/4]  success  batch_size=1  warm-up  0.1")
    assert lines[6].split() == ["GPU", "type", "batch_size", "runs/s", "s", "each", "±"]
    _, resumed, _ = called(capsys, "resume", "last")
    assert sorted(line.split()[2] for line in resumed.splitlines()[-2:]) == ["1", "4"]
    _, as_csv, _ = called(capsys, "show", "last", "--csv", "--per", "results.images")
    rows = list(csv.DictReader(io.StringIO(as_csv)))
    assert [row["batch_size"] for row in rows] == ["4", "1"]
    assert [row["outputs"] for row in rows] == ["4.0", "1.0"]
    code, planned, _ = called(capsys, "draw.Draw", "batch_size=2", "--dry-run")
    assert (code, planned.splitlines()) == (
        0,
        [
            "this machine: 1 case, each with a warm-up and 3 measured runs",
            "nothing was started",
        ],
    )


def test_a_dry_run_as_json_has_the_cases_and_the_forecast(
    capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    command = ("draw.Draw", "--vary", "batch_size=1,4", "--dry-run", "--json")
    record = json.loads(called(capsys, *command)[1])
    assert [case["overrides"] for case in record["cases"]] == [["batch_size=1"], ["batch_size=4"]]
    assert (record["repeat"], record["forecast"]) == (3, None)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("draw.Draw", "--gpu", "t4,h10"), "'h10' is not a GPU type (did you mean 'h100'?)"),
        (("draw.Draw", "--plot", "a.png"), "runs on this machine cost nothing"),
        (("draw.Draw", "--gpu", "t4", "--plot", "a.pgn"), "did you mean 'png'"),
        (("draw.Draw", "--pip", "timm"), "options of Modal go with --gpu"),
        (("draw.Draw", "--json", "--csv"), "--json and --csv exclude each other"),
        (("draw.Draw", "--vary", "batch_size"), "is not an axis"),
        (("draw.Draw", "--batch_size=3"), "is set without dashes: batch_size=3"),
        (("show", "lost"), "there are no benches in"),
    ],
)
def test_mistakes_exit_with_2(
    arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, shown = called(capsys, *arguments)
    assert code == 2
    assert says in shown
