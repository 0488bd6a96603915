"""`ml-experiments runs`, as a whole process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.command import ENDS, FIT, call

pytestmark = pytest.mark.slow


def test_runs_list_and_show(runs_dir: Path) -> None:
    assert "no runs in" in call("runs", "list").stdout
    run_id = json.loads(call("run", FIT, "--json").stdout)["run_id"]
    call("run", ENDS, "how=value_error")
    listed = json.loads(call("runs", "list", "--json").stdout)
    assert [row["status"] for row in listed] == ["error", "success"]
    newest = json.loads(call("runs", "list", "--json", "--limit", "1").stdout)
    assert newest == listed[:1]
    assert "1 older ones: --limit 0" in call("runs", "list", "--limit", "1").stdout
    damaged = runs_dir / "99990101-000000-000abcd"
    damaged.mkdir()
    narrow = {**os.environ, "COLUMNS": "79"}
    table = call("runs", "list", env=narrow).stdout.splitlines()
    assert table[1].split() == [damaged.name, "unreadable"]
    assert table[-1] == f"unreadable: {damaged / 'spec.json'} is missing"
    (whole,) = (line for line in table if run_id in line)
    assert whole.split()[0::3] == [run_id, "Fit"]
    damaged.rmdir()
    shown = json.loads(call("runs", "show", run_id[:-1], "--json").stdout)
    assert shown["run_id"] == run_id
    assert [entry["step"] for entry in shown["metrics"]] == [0, 1, 2]
    assert shown["manifest"]["environment"]["packages"]["pydantic"]
    assert "the loss is not a number" in call("runs", "show", "last").stdout
    assert call("runs", "show", run_id, "--log").stdout.endswith("step 0\nstep 1\nstep 2\n")
    assert call("runs", "show", "nope").returncode == 2
    pulled = call("runs", "pull", run_id)  # which needs no account to be answered
    assert f"run {run_id} was not on Modal (its backend is local)" in pulled.stderr
    assert "(did you mean 'last'?)" in call("runs", "show", "lats").stderr
    assert f"(did you mean '{run_id}'?)" in call("runs", "show", f"{run_id[:-2]}zz").stderr


def test_runs_resume_goes_on_from_the_checkpoint() -> None:
    died = call("run", "tests.support.experiments:Counts")
    assert died.returncode == 1
    assert "if memory was the cause, lower batch_size" in died.stdout
    resumed = call("runs", "resume", "last", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["results"] == {"first": 5, "until": 10}
    assert call("runs", "resume", "last").returncode == 2


def test_the_runs_folder_is_a_setting_of_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ML_EXPERIMENTS_RUNS_DIR")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.py").write_text("def train(config): return 1\n")
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text('[tool.ml-experiments]\nruns_dir = "kept"\n')
    done = call("run", "mine.train", "--json", cwd=tmp_path / "deep")
    assert json.loads(done.stdout)["run_dir"].startswith(str(tmp_path / "kept"))
    pyproject.write_text('[tool.ml-experiments]\nrun_dir = "kept"\n')
    done = call("run", "mine.train", cwd=tmp_path / "deep")
    assert done.returncode == 2
    assert "unknown keys ['run_dir']" in done.stderr


def test_a_runs_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call("run", FIT, env={**os.environ, "ML_EXPERIMENTS_RUNS_DIR": str(tmp_path / "file")})
    assert done.returncode == 2
    assert "can't be written" in done.stderr
