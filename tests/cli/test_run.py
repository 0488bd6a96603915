"""`ml-experiments run`, as a whole process."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command import COMMAND, ENDS, FIT, PLAIN, call

pytestmark = pytest.mark.slow

SLURM_TWICE = ("--slurm", "partition=a", "--slurm", "partition=b")


def test_success_exits_0_and_reports(runs_dir: Path) -> None:
    done = call("run", FIT, "steps=2", "--name", "quick", "--tag", "team=vision", "--seed", "4")
    assert done.returncode == 0, done.stderr
    assert "step 0\nstep 1\n" in done.stdout
    assert "success" in done.stdout
    assert "artifacts/weights.txt" not in done.stderr
    (folder,) = runs_dir.iterdir()
    assert folder.name in done.stdout
    spec = json.loads((folder / "spec.json").read_text())
    assert (spec["name"], spec["tags"], spec["seed"]) == ("quick", {"team": "vision"}, 4)


def test_an_error_exits_1_and_tells_kind_traceback_and_hint(runs_dir: Path) -> None:
    done = call("run", ENDS, "how=missing_module")
    assert done.returncode == 1
    assert "ModuleNotFoundError" in done.stdout
    assert "error kind  import" in done.stdout
    assert "hint        pip install a_package_that_is_not_there" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FIT, "stepz=2"], "did you mean 'steps'"),
        ([FIT, "steps=many", "optimizer=adm"], "optimizer"),
        (["tests.support.experiments.Plian"], "did you mean 'Plain'"),
        (["tests.support.experimentz.Fit"], "did you mean 'experiments'"),
        (["tests.support.experiments.NoRun"], "has no run() method"),
        (["nodots"], "is not an import path"),
        (["no/such/file.py:Thing"], "does not exist"),
        ([FIT, "--config", "no-such-file.yaml"], "no-such-file.yaml"),
        ([FIT, "--timeout", "soon"], "is not a duration"),
        ([FIT, "--timeout", "0"], "must be above 0"),
        ([FIT, "--tag", "nothing"], "key=value"),
        ([FIT, "--backend", "locall"], "did you mean 'local'"),
        ([FIT, "--backend", "local", "--gpu", "a10g"], "this machine's own GPUs"),
        ([FIT, "--secret", "mine"], "--backend modal"),
        ([FIT, "--cpu", "0"], "--cpu goes with --backend modal"),
        ([FIT, "--escalate", "lr=3"], "write --escalate=larger"),
        ([FIT, "--backend", "local", "--escalate"], "escalate_to=GPU"),
        ([FIT, "--retries", "-1"], "retries"),
        ([FIT, "--debug", "--retries", "1"], "debug backend"),
        ([FIT, "steps"], "steps"),
        ([FIT, "--lr", "3"], "no such option '--lr'; a field of the config is set without dashes"),
        ([FIT, "--lr", "3"], ": lr=3\n"),
        ([FIT, "--model-name=tiny"], ": model_name=tiny\n"),
        ([FIT, "-lr", "--seed", "1"], ": lr=VALUE\n"),
        ([FIT, "--gpuu", "a10g"], "(did you mean '--gpu'?)"),
        ([FIT, "--no-amp"], ": amp=false\n"),
        ([FIT, "gpu=a10g"], "set with dashes, as in --gpu VALUE"),
        ([FIT, "timeout_s=60"], "set with dashes, as in --timeout VALUE"),
        ([FIT, "--memory", "lots"], "write 16 or 16GiB for GiB, 512MiB, or 16GB for decimal GB"),
        ([FIT, "--memory", "16G"], "no amount of memory"),
        ([FIT, "--gpu", "t4", "--gpu=l4"], "--gpu was given 2 times; several in one: --gpu t4,l4"),
        ([FIT, "--seed", "1", "--seed", "1", "--seed", "2"], "--seed was given 3 times"),
        ([FIT, *SLURM_TWICE], "--slurm partition was given again, as 'b'"),
        ([FIT, "--tag", "team=a", "--tag", "team=b"], "--tag team was given 2 times"),
    ],
)
def test_bad_usage_exits_2_and_starts_nothing(
    arguments: list[str], message: str, runs_dir: Path
) -> None:
    done = call("run", *arguments)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(runs_dir.iterdir()) == []


def test_a_wrong_gpu_type_is_named_before_an_account_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MODAL_TOKEN_ID", raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    assert "did you mean 'a10g'?" in call("run", FIT, "--gpu", "a10gg").stderr
    (tmp_path / "job.py").write_text("def job(config): return 1\n")
    done = call("run", "job.job", "--gpu", "a10g", cwd=tmp_path)
    assert "there is no Modal token on this machine" in done.stderr


def test_every_config_problem_is_told_at_once() -> None:
    done = call("run", FIT, "stepz=2", "steps=many", "optimizer=adm")
    for message in ("stepz", "steps", "many", "optimizer", "adm", "'adam'", "'sgd'"):
        assert message in done.stderr


def test_json_prints_one_object_and_everything_else_on_stderr() -> None:
    done = call("run", FIT, "steps=2", "--json")
    result = json.loads(done.stdout)
    assert result["status"] == "success"
    assert result["results"]["steps"] == 2
    assert "step 0" in done.stderr


def test_json_of_an_error_is_still_one_object() -> None:
    done = call("run", ENDS, "how=value_error", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["kind"] == "experiment"


@pytest.mark.parametrize(
    "call_of",
    [
        "breakpoint()",
        "import pdb; pdb.set_trace()",
        "input('? ')",
        "import getpass; getpass.getpass()",
    ],
)
def test_a_debugger_or_a_question_in_a_worker_is_told_to_use_debug(
    call_of: str, tmp_path: Path
) -> None:
    (tmp_path / "asks.py").write_text(f"def asks():\n    {call_of}\n    return 1\n")
    done = call("run", f"{tmp_path}/asks.py:asks", "--json")
    error = json.loads(done.stdout)["error"]
    assert "ml-experiments run --debug" in error["hint"]
    assert "bdb" not in error["traceback"]
    if error["type"] == "DebuggerQuit":
        assert f"{tmp_path}/asks.py, line " in error["message"]


def test_with_debug_files_left_open_are_written_and_the_report_is_on_its_own_line(
    tmp_path: Path, runs_dir: Path
) -> None:
    (tmp_path / "leaves.py").write_text(
        "import sys\nfrom ml_experiments import current_run\n"
        "def leaves():\n    global file\n"
        "    file = open(current_run().output_dir / 'left.txt', 'w')\n"
        "    file.write('x' * 100)\n"
        "    for step in range(2):\n"
        "        print('no end', end='')\n"
        "        current_run().progress(step + 1, 2)\n"
        "    print('no end', end='')\n"
        "    sys.stdout.close()\n"
    )
    command = [*COMMAND, "run", f"{tmp_path}/leaves.py:leaves", "--debug", "--name", "me"]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    lines = ["no end", "me: 1/2", "no end", "me: 2/2", "no end"]
    assert done.stdout.splitlines()[:5] == lines
    assert done.stdout.splitlines()[5].startswith("status ")
    assert [file.stat().st_size for file in runs_dir.glob("*/artifacts/left.txt")] == [100]


def test_dry_run_prints_the_spec_and_starts_nothing(runs_dir: Path) -> None:
    done = call("run", FIT, "steps=7", "--dry-run", "--timeout", "1h30m")
    spec = json.loads(done.stdout)
    assert spec["config"] == {"model_name": "tiny", "steps": 7, "optimizer": "adam"}
    assert spec["timeout_s"] == 5400
    assert list(runs_dir.iterdir()) == []


def test_a_config_file_is_overridden_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("steps: 5\noptimizer: sgd\n")
    done = call("run", FIT, "--config", str(tmp_path / "config.yaml"), "steps=1", "--dry-run")
    assert json.loads(done.stdout)["config"] == {
        "model_name": "tiny",
        "steps": 1,
        "optimizer": "sgd",
    }


def test_the_current_folder_is_importable(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n  def __init__(s, c): 0\n  def run(s): return 5\n"
    )
    done = call("run", "mine.Mine", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["results"] == 5


def test_a_file_with_relative_imports_runs_by_its_path(tmp_path: Path) -> None:
    package = tmp_path / "src" / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("VALUE = 6\n")
    (package / "train.py").write_text("from .other import VALUE\ndef train(config): return VALUE\n")
    done = call("run", f"{package}/train.py:train", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["results"] == 6


def test_a_file_named_like_an_installed_module_is_the_one_that_runs(tmp_path: Path) -> None:
    (tmp_path / "yaml.py").write_text("def train(config): return 'mine'\n")
    done = call("run", f"{tmp_path}/yaml.py:train", "--json")
    assert json.loads(done.stdout)["results"] == "mine", done.stderr


def test_functions_are_experiments_too() -> None:
    done = call("run", "tests.support.experiments:fit", "lr=3e-4", "--json")
    assert json.loads(done.stdout)["results"] == {"lr": 3e-4, "epochs": 2, "name": "x"}
    done = call("run", "tests.support.experiments:train", "a.b=1", "--json")
    assert json.loads(done.stdout)["results"] == {"got": {"a": {"b": 1}}}
    done = call("run", "tests.support.experiments:fit", "epoch=3", "--json")
    assert done.returncode == 2
    assert "did you mean 'epochs'" in done.stderr


def test_debug_runs_in_the_commands_own_process() -> None:
    done = call("run", PLAIN, "--debug", "--json")
    result = json.loads(done.stdout)
    process = json.loads((Path(result["run_dir"]) / "manifest.json").read_text())["process"]
    client = json.loads((Path(result["run_dir"]) / "manifest.json").read_text())["client"]
    assert result["results"]["pid"] == process["pid"] == client["pid"]


def test_debug_keeps_the_log_too() -> None:
    done = call("run", FIT, "steps=2", "--debug", "--json")
    assert (Path(json.loads(done.stdout)["run_dir"]) / "log.txt").read_text() == "step 0\nstep 1\n"


@pytest.mark.parametrize(("presses", "options"), [(1, []), (2, []), (1, ["--debug"])])
def test_ctrl_c_exits_130_and_leaves_a_cancelled_run(
    runs_dir: Path, presses: int, options: list[str]
) -> None:
    how = "sleeps" if presses == 1 else "ignores_interrupt"
    command = subprocess.Popen(
        [*COMMAND, "run", ENDS, f"how={how}", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not list(runs_dir.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    for _ in range(presses):
        command.send_signal(signal.SIGINT)
        time.sleep(0.5)
    stdout, _ = command.communicate(timeout=60)
    assert command.returncode == 130
    assert b"cancelled" in stdout
    (result,) = runs_dir.glob("*/result.json")
    assert json.loads(result.read_text())["status"] == "cancelled"


def test_progress_is_shown_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    command = subprocess.Popen(
        [*COMMAND, "run", FIT, "steps=4"],
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
    os.close(leader)
    assert command.wait(60) == 0
    assert b"step 3" in shown
    assert b"success" in shown


def test_progress_of_a_second_stage_is_shown_too(tmp_path: Path) -> None:
    (tmp_path / "stages.py").write_text(
        "from ml_experiments import current_run\n"
        "def stages(config):\n"
        "    for stage in ('first', 'second'):\n"
        "        for step in range(1, 5):\n"
        "            current_run().progress(step, 4, text=stage)\n"
    )
    shown = call("run", f"{tmp_path}/stages.py:stages", "--name", "x").stderr.splitlines()
    assert shown == [f"x: {n}/4 {stage}" for stage in ("first", "second") for n in range(1, 5)]


def test_secrets_are_in_no_record(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", "tok-5f4dcc3b5aa765d61d83")
    for note in ("", "raise"):
        done = call(
            *("run", "tests.support.experiments:Secretive", f"note={note}"),
            *("api_key=key-0123456789abcdef", "--json"),
        )
        result = json.loads(done.stdout)
        if not note:
            assert result["status"] == "success"
            assert result["results"]["works"] == len("key-0123456789abcdef")
        texts = [done.stdout, done.stderr]
        files = [file for file in runs_dir.rglob("*") if file.is_file()]
        texts += [file.read_text() for file in files]
        assert len(files) >= 5
        for text in texts:
            assert "tok-5f4dcc3b5aa765d61d83" not in text
            assert "key-0123456789abcdef" not in text
