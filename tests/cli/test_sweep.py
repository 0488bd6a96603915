"""`ml-experiments sweep`, as a whole process."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ml_experiments.runner.sweeps.folder import find_sweep
from modal_emulator import Emulator
from tests.support.command import COMMAND, call
from tests.support.modal_runs import run_command
from tests.support.terminal import Tmux, needs_tmux
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

EXPERIMENT = """
import os
import time
from pathlib import Path

HERE = Path(__file__).parent


def train(lr: float = 0.1, n: int = 1):
    with (HERE / "calls.txt").open("a") as file:
        file.write(f"{lr}\\n")
    if lr == 0.3:
        (HERE / "starting").write_text(str(os.getpid()))
        (HERE / "starting").replace(HERE / "waiting")
        while not (HERE / "go").exists():
            time.sleep(0.01)
    if lr == 0.9:
        raise ValueError("too large")
    return {"loss": lr * n}
"""


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "train.py").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def wait_for(file: Path) -> None:
    ends_at = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < ends_at, f"{file} did not appear"
        time.sleep(0.01)


def test_a_sweep_prints_its_space_then_lines_then_a_ranked_table(project: Path) -> None:
    space = ("lr=0.2,0.1", "n=range:1:3")
    done = call("sweep", "train.py:train", *space, "--minimize", "loss", "--name", "night")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == ["lr  0.2, 0.1  (2 values)", "n   1, 2  (2 values)", "4 points"]
    assert lines[4].startswith("[1/4]  success  lr=0.2 n=1  results.loss=0.2")
    assert lines[8].split() == ["lr", "n", "results.loss", "status", "seconds", "run"]
    assert lines[9].split()[:4] == ["1", "0.1", "1", "0.1"]
    assert lines[-1] == "4 of 4 done"
    shown = call("sweep", "show", "last")
    assert shown.stdout.splitlines()[-1] == "4 of 4 done"
    for reference in (lines[3].split()[1], "night", "last", "*"):
        listed = call("runs", "list", "--sweep", reference, "--json")
        assert len(json.loads(listed.stdout)) == 4
    unknown = call("costs", "--sweep", "lats")
    assert unknown.returncode == 2
    assert "has the id or the name 'lats' (did you mean 'last'?)" in unknown.stderr
    assert call("sweep", "stop", "last").stdout.endswith("is not running\n")


def test_a_pruner_whose_metric_no_point_logs_is_told(project: Path) -> None:
    (project / "logs.py").write_text(
        "from ml_experiments import current_run\n"
        "def fit(lr: float):\n    current_run().log({'loss': lr}, step=1)\n    return lr\n"
    )
    command = ("sweep", "logs.fit", "lr=0.1,0.2", "--pruner", "halving", "--minimize", "results")
    done = call(*command, "--metric", "los")
    assert "no point has logged 'los' at a step (did you mean 'loss'?); logged: loss" in done.stdout
    assert "compared nothing" not in call(*command, "--metric", "loss").stdout


@needs_tmux
def test_a_terminal_shows_values_as_they_are_written(project: Path) -> None:
    (project / "texts.py").write_text(
        "import pathlib, time\ndef measure(text):\n"
        "    while text == 'wait' and not pathlib.Path('go').exists(): time.sleep(0.01)\n"
        "    return {'length': len(text)}\n"
    )
    value = f'"[/red] {"long " * 30}"'
    space = shlex.quote(f"text={value},wait")
    command = f"{shlex.join(COMMAND)} sweep texts.measure {space} --maximize length"
    with Tmux(command, 60, project) as terminal:
        terminal.wait_until(lambda lines: any(line.startswith("running  text=w") for line in lines))
        assert any(line.startswith('best     157  text="[/red] long') for line in terminal.screen())
        (project / "go").touch()
        assert terminal.wait()[-1] == "2 of 2 done"


def test_a_sweep_ends_with_the_importance_of_its_axes(project: Path) -> None:
    done = call("sweep", "train.py:train", "lr=range:4:9", "n=range:2", "--minimize", "loss")
    lines = done.stdout.splitlines()
    start = lines.index("what tells the best points by results.loss from the others (PED-ANOVA):")
    assert [line.split()[0] for line in lines[start + 1 : start + 3]] == ["n", "lr"]
    record = json.loads(call("sweep", "show", "last", "--importances", "--json").stdout)
    assert list(record["importances"]) == ["n", "lr"]
    assert record["importances_problem"] is None


def test_failures_make_the_exit_code_1_and_are_named(project: Path) -> None:
    done = call("sweep", "train.py:train", "lr=0.9,0.1")
    assert done.returncode == 1
    assert "1 failed: ValueError: too large" in done.stdout
    assert "run what is missing with: ml-experiments sweep resume" in done.stdout


def test_json_and_csv_are_alone_on_stdout(project: Path) -> None:
    done = call("sweep", "-m", "train.py:train", "lr=0.1,0.2", "--maximize", "loss", "--json")
    record = json.loads(done.stdout)
    assert [point["score"] for point in record["points"]] == [0.2, 0.1]
    table = call("sweep", "show", record["sweep_id"], "--csv").stdout
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [(row["lr"], row["score"], row["status"]) for row in rows] == [
        ("0.2", "0.2", "success"),
        ("0.1", "0.1", "success"),
    ]


def test_mistakes_are_answered_and_nothing_is_started(project: Path, runs_dir: Path) -> None:
    for arguments, says in (
        (["lr=0.1,x"], "lr: given 'x'"),
        (["lrr=1"], "did you mean 'lr'"),
        ([], "the search space is empty"),
        (["lr=log:1e-3:1"], "--sampler random --trials 50"),
        (["--lr", "1"], "a field of the config is set without dashes: lr=1"),
        (["lr=1", "--json", "--csv"], "exclude each other"),
        (["lr=1", "--fail-fast", "--keep-going"], "exclude each other"),
        (["lr=1", "--cpu", "2"], "--cpu goes with --backend modal"),
    ):
        done = call("sweep", "train.py:train", *arguments)
        assert done.returncode == 2, done.stdout
        assert says in done.stderr
    assert "did you mean 'last'" not in call("sweep", "show", "lst").stderr
    assert not (project / "calls.txt").exists()
    assert not any(runs_dir.iterdir())


def test_a_dry_run_checks_all_points_and_starts_none(project: Path, runs_dir: Path) -> None:
    (project / "base.yaml").write_text("n: 3\n")
    (project / "space.yaml").write_text("lr: [1e-1, 2e-1]\n")
    done = call(
        *("sweep", "train.py:train", "--config", "base.yaml", "--space", "space.yaml"),
        *("--dry-run",),
    )
    assert done.stdout.splitlines()[-1] == "2 checked; nothing was started"
    assert not any(runs_dir.iterdir())
    done = call(
        *("sweep", "train.py:train", "--config", "base.yaml", "--space", "space.yaml"),
        *("--minimize", "loss", "--json"),
    )
    scores = [point["score"] for point in json.loads(done.stdout)["points"]]
    assert scores == pytest.approx([0.3, 0.6])


@pytest.mark.parametrize("options", [[], ["--sampler", "random", "--trials", "30"]])
def test_kill_9_loses_nothing(project: Path, options: list[str]) -> None:
    command = [*COMMAND, "sweep", "train.py:train", "lr=0.1,0.2,0.3,0.4", *options]
    with subprocess.Popen([*command, "--seed", "1"], stdout=subprocess.DEVNULL) as process:
        wait_for(project / "waiting")
        process.send_signal(signal.SIGKILL)
    before = (project / "calls.txt").read_text().splitlines()
    worker = int((project / "waiting").read_text())
    wait_until(lambda: not psutil.pid_exists(worker), "the end of the dead client's worker")
    (project / "go").touch()
    done = call("sweep", "resume", "last", "--json")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    ran = {override for point in record["points"] for override in point["overrides"]}
    assert {point["status"] for point in record["points"]} == {"success"}
    assert ran == {"lr=0.1", "lr=0.2", "lr=0.3", "lr=0.4"}
    after = (project / "calls.txt").read_text().splitlines()
    # what had ended did not run again; what was running did
    assert sorted(after) == sorted([*{"0.1", "0.2", "0.3", "0.4"}, "0.3"])
    assert before == after[: len(before)]


@pytest.mark.parametrize("way", ["interrupt", "stop"])
def test_a_sweep_is_stopped_and_resumed(project: Path, way: str) -> None:
    command = [*COMMAND, "sweep", "train.py:train", "lr=0.1,0.3,0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        wait_for(project / "waiting")
        if way == "interrupt":
            os.kill(process.pid, signal.SIGINT)
        else:
            assert "stops; go on with" in call("sweep", "stop", "last").stdout
        output = process.stdout.read() if process.stdout else ""
    assert process.returncode == (130 if way == "interrupt" else 1)
    assert "2 of 3 done, 1 cancelled" in output
    assert ("stopped: it was stopped by" in output) == (way == "stop")
    (project / "go").touch()
    assert call("sweep", "resume", "last").stdout.splitlines()[-1] == "3 of 3 done"


def test_a_detached_sweep_outlives_its_terminal_and_is_stopped_and_resumed_so(
    project: Path, runs_dir: Path
) -> None:
    # a session of its own, as a terminal's, which is then killed
    command = [*COMMAND, "sweep", "train.py:train", "lr=0.1,0.3,0.2", "--detach", "--json"]
    with subprocess.Popen(
        ["sh", "-c", f"{shlex.join(command)}; sleep 60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as terminal:
        assert terminal.stdout is not None
        record = json.loads(terminal.stdout.readline())
        os.killpg(terminal.pid, signal.SIGKILL)
    wait_for(project / "waiting")
    folder = find_sweep(runs_dir, record["sweep_id"])
    assert folder.is_running
    shown = call("sweep", "show", "last").stdout
    assert "1 of 3 done, 1 running" in shown
    taken = call("sweep", "resume", "last", "--detach")
    assert taken.returncode == 2
    assert "is being run by another process" in taken.stderr

    assert "stops; go on with" in call("sweep", "stop", "last").stdout
    wait_until(lambda: not folder.is_running, "the end of the sweep")
    shown = call("sweep", "show", "last").stdout
    assert "2 of 3 done, 1 cancelled" in shown
    assert "stopped: it was stopped by `ml-experiments sweep stop`" in shown

    (project / "go").touch()
    again = call("sweep", "resume", "last", "--detach")
    assert again.stdout.splitlines() == [
        f"sweep {record['sweep_id']} goes on without this terminal",
        f"  ml-experiments sweep show {record['sweep_id']}",
        f"  ml-experiments sweep stop {record['sweep_id']}",
    ]
    wait_until(lambda: not folder.is_running, "the end of the sweep")
    shown = call("sweep", "show", "last").stdout
    assert shown.splitlines()[-1] == "3 of 3 done"
    assert folder.log_file.read_text() == ""


def test_one_bad_value_among_hundreds_is_named_before_anything_starts(
    project: Path, runs_dir: Path
) -> None:
    values = [str(n) for n in range(250)]
    values[20], values[180] = "early", "late"
    done = call("sweep", "train.py:train", f"lr={','.join(values)}")
    assert done.returncode == 2
    assert "given 'early'" in done.stderr
    assert "(at lr=early)" in done.stderr
    assert "(at lr=late)" in done.stderr
    assert not (project / "calls.txt").exists()
    values[20], values[180] = "20", "180"
    dry = call("sweep", "train.py:train", f"lr={','.join(values)}", "--dry-run")
    assert dry.stdout.splitlines()[-1] == "250 checked; nothing was started"


def test_an_extension_is_tried_first_and_may_be_detached(project: Path, runs_dir: Path) -> None:
    call("sweep", "train.py:train", "lr=0.1,0.2")
    folder = find_sweep(runs_dir, "last")
    assert "nothing to extend" in call("sweep", "extend", "last").stderr
    dry = call("sweep", "extend", "last", "lr=0.4,0.5", "--dry-run")
    assert dry.stdout == "2 checked; nothing was started\n"
    assert folder.read_spec().total == 2
    wrong = call("sweep", "extend", "last", "lr=x", "--detach")
    assert (wrong.returncode, folder.read_spec().total) == (2, 2)
    none = call("sweep", "extend", "last", "--trials", "0", "--detach")
    assert (none.returncode, folder.is_running) == (2, False)
    assert "--trials 0: the sweep is a grid" in none.stderr
    assert call("sweep", "resume", "last", "--dry-run").stdout.startswith("0 checked")
    assert call("sweep", "extend", "last", "lr=0.4", "--detach").returncode == 0
    wait_until(lambda: not folder.is_running, "the end of the sweep")
    assert call("sweep", "show", "last").stdout.splitlines()[-1] == "3 of 3 done"


def test_a_wider_interval_of_a_sweep_that_is_whole_asks_for_trials(project: Path) -> None:
    sampled = ("lr=uniform:0:0.5", "--sampler", "random", "--trials", "2")
    assert call("sweep", "train.py:train", *sampled).returncode == 0
    wider = call("sweep", "extend", "last", "lr=uniform:0:1")
    assert (wider.returncode, "--trials N suggests points" in wider.stderr) == (0, True)
    more = call("sweep", "extend", "last", "--trials", "3")
    assert (more.stdout.splitlines()[-1], more.stderr) == ("3 of 3 done", "")


def test_a_detached_sweep_that_is_not_valid_is_refused_at_once(
    project: Path, runs_dir: Path
) -> None:
    done = call("sweep", "train.py:train", "lr=0.1,x", "--detach")
    assert done.returncode == 2
    assert "lr: given 'x'" in done.stderr
    done = call("sweep", "train.py:train", "lr=0.1", "--detach", "--dry-run")
    assert "can't go with --dry-run" in done.stderr
    assert not any(runs_dir.iterdir())


def test_a_sweep_on_modal_goes_the_same_way(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def train(lr: float):\n    return {'loss': lr * 2}\n")
    arguments = ("sweep", "mine.train", "lr=0.1,0.3", "--gpu", "t4", "--parallel", "2", "--json")
    done = run_command(modal_emulator, tmp_path, *arguments, "--minimize", "loss")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert [point["score"] for point in record["points"]] == [0.2, 0.6]
    assert modal_emulator.functions("run_remote")[-1].gpus == ("T4",)
    again = run_command(modal_emulator, tmp_path, "sweep", "resume", "last", "--json")
    assert json.loads(again.stdout)["points"] == record["points"]
    # more points cost more: that is said, and asked about, as at the start
    extension = ("sweep", "extend", "last", "lr=0.5")
    dry = run_command(modal_emulator, tmp_path, *extension, "--dry-run", "--json")
    found = json.loads(dry.stdout)
    assert (found["total"], found["checked"], found["forecast"]["runs"]) == (3, 1, 1)
    (tmp_path / "pyproject.toml").write_text("[tool.ml-experiments]\nask_above = 0.001\n")
    for how in ([], ["--detach"]):
        refused = run_command(modal_emulator, tmp_path, *extension, *how)
        assert refused.returncode == 2
        assert "ask_above, and nobody was asked; --yes" in refused.stderr
    # a cap without room is told by a dry run, too
    with monkeypatch.context() as patch:
        patch.setenv("ML_EXPERIMENTS_MAX_COST_PER_DAY", "0.001")
        refusals = [
            run_command(modal_emulator, tmp_path, *extension, how) for how in ("--yes", "--dry-run")
        ]
    for refused in refusals:
        assert refused.returncode == 2
        assert "the day's cap of $0.0010 is too low" in refused.stderr
    # a cap may be replaced, and is kept
    poor = run_command(modal_emulator, tmp_path, "sweep", "resume", "last", "--max-cost", "1e-6")
    assert poor.returncode == 0  # for nothing is left to run
    poor = run_command(modal_emulator, tmp_path, *extension, "--yes")
    assert "the cap of <$0.0001 is too low" in poor.stderr
    assert run_command(modal_emulator, tmp_path, *extension, "--max-cost", "0").returncode == 2
    assert find_sweep(runs_dir, "last").read_spec().total == 2
    again = run_command(modal_emulator, tmp_path, *extension, "--yes", "--json", "--max-cost", "2")
    assert json.loads(again.stdout)["total"] == 3


def test_a_cap_holds_for_all_points_of_a_sweep_together(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "mine.py").write_text("def train(lr: float):\n    return {'loss': lr * 2}\n")
    arguments = ("sweep", "mine.train", "lr=0.1,0.2,0.3,0.4", "--gpu", "t4", "--parallel", "2")
    before = sorted(runs_dir.iterdir())
    done = run_command(modal_emulator, tmp_path, *arguments, "--max-cost", "0.05", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the cap of $0.05 is too low, for a run on t4 takes at least $0.08" in done.stderr
    assert "Raise --max-cost" in done.stderr
    dry = run_command(modal_emulator, tmp_path, *arguments, "--max-cost", "0.05", "--dry-run")
    assert (dry.returncode, dry.stderr.splitlines()[-1]) == (2, done.stderr.splitlines()[-1])
    assert sorted(runs_dir.iterdir()) == before
    asked = run_command(modal_emulator, tmp_path, *arguments, "--retries", "1", "--dry-run")
    assert "for 4 runs (from the timeout), at most $" in asked.stdout
    assert " in 2 attempts each\n4 checked; nothing was started" in asked.stdout
    (tmp_path / "pyproject.toml").write_text("[tool.ml-experiments]\nask_above = 0.5\n")
    refused = run_command(modal_emulator, tmp_path, *arguments)
    assert refused.returncode == 2
    assert "which is above the $0.50 of ask_above, and nobody was asked; --yes" in refused.stderr
    done = run_command(
        modal_emulator,
        tmp_path,
        *arguments,
        "--timeout",
        "1h",
        "--max-cost",
        "0.5",
        "--json",
        "--yes",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert len(record["points"]) == 4
    # four points of an hour could cost more: the cap is less
    assert (record["forecast"]["runs"], record["forecast"]["all_attempts_usd"]) == (4, 0.5)
    # each of the two that run at a time may cost half of it; an hour alone costs more
    timeouts = {each.timeout_s for each in modal_emulator.functions("run_remote")[-1:]}
    assert max(timeouts) < 3600
    here = call("sweep", "train.py:train", "lr=0.1,0.2", "--max-cost", "1")
    assert here.returncode == 2
    assert "here they cost nothing" in here.stderr
