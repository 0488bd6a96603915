"""`run_id=`: a run that is submitted twice with one id runs once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import ConfigError, LocalBackend, load_run, run_experiment, submit_experiment
from ml_experiments.runner.sweeps.planning import plan_sweep
from ml_experiments.runner.sweeps.search_space.space import read_space
from tests.support.command import COMMAND, call
from tests.support.modal_runs import Recorder

WAITS = """
import time
from pathlib import Path
def waits(n=1):
    with open("calls" + ".txt", "a") as file:
        file.write("call\\n")
    print("begun", flush=True)
    while not Path("go").exists():
        time.sleep(0.01)
    return n
def fails(): raise ValueError("a bad batch")
"""


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with LocalBackend(max_workers=2) as opened:
        yield opened


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "waiting.py").write_text(WAITS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calls(project: Path) -> int:
    return len((project / "calls.txt").read_text().splitlines())


def test_the_second_submission_follows_the_first_and_later_ones_get_its_result(
    project: Path, backend: LocalBackend, runs_dir: Path
) -> None:
    options: dict[str, Any] = {"backend": backend, "run_id": "nightly-3"}
    first = submit_experiment("waiting.waits", {"n": 3}, observer=Recorder(), **options)
    recorder = Recorder()
    second = submit_experiment("waiting.waits", {"n": 3}, observer=recorder, **options)
    assert second.run_id == first.run_id == "nightly-3"
    assert recorder.notices == ["run nightly-3 exists, and none was started: it goes on"]
    assert recorder.printed.wait(60)
    (project / "go").touch()
    assert second.result().results == first.result().results == 3
    assert recorder.lines == b"begun\n"
    assert recorder.events == ["finished: success"]
    again = run_experiment("waiting.waits", {"n": 3}, observer=recorder, **options)
    assert again.results == 3
    assert recorder.notices[-1].endswith("it has ended with status success")
    assert calls(project) == 1
    assert first.folder.path == runs_dir / "nightly-3"


def test_a_run_that_failed_is_not_started_again_either(backend: LocalBackend) -> None:
    options: dict[str, Any] = {"backend": backend, "run_id": "once", "observer": Recorder()}
    first = run_experiment("waiting.fails", {}, **options)
    assert run_experiment("waiting.fails", {}, **options) == first
    assert first.status == "error"


def test_the_id_of_another_run_is_refused(project: Path, backend: LocalBackend) -> None:
    (project / "go").touch()
    options: dict[str, Any] = {"backend": backend, "run_id": "taken", "observer": Recorder()}
    run_experiment("waiting.waits", {"n": 3}, seed=1, **options)
    for config, seed, named in (
        ({"n": 4}, 1, r"config.n is 3, not 4"),
        ({"n": 3}, 2, r"seed is 1, not 2"),
    ):
        with pytest.raises(ConfigError, match=f"taken exists, and is another run: {named}"):
            run_experiment("waiting.waits", config, seed=seed, **options)
    with pytest.raises(ConfigError, match="experiment is waiting:waits, not waiting:fails"):
        run_experiment("waiting.fails", {}, **options)
    # an edit of the source is no reason to run it twice
    (project / "waiting.py").write_text(WAITS + "# edited\n")
    assert run_experiment("waiting.waits", {"n": 3}, **options).results == 3
    assert calls(project) == 1


@pytest.mark.parametrize("run_id", ["", "a/b", "../a", ".a", "-a", "a b", "é", "a" * 49, "last"])
def test_what_can_not_be_an_id_is_refused(backend: LocalBackend, run_id: str) -> None:
    with pytest.raises(ConfigError, match="can't be the id of a run"):
        run_experiment("waiting.waits", {}, backend=backend, run_id=run_id)


def test_a_sweep_has_no_id_for_its_runs() -> None:
    with pytest.raises(ConfigError, match="run_id is for single runs"):
        plan_sweep("waiting.waits", read_space(["n=1,2"]), run_id="a")


def test_a_run_with_an_id_of_its_own_stands_where_its_time_puts_it(
    project: Path, backend: LocalBackend
) -> None:
    (project / "go").touch()
    for run_id in (None, "aaa", None, "zzz"):
        run_experiment(
            "waiting.waits", {}, backend=backend, run_id=run_id, name=run_id, observer=Recorder()
        )
    assert load_run("last").run_id == "zzz"
    rows = json.loads(call("runs", "list", "--json").stdout)
    assert [row["name"] for row in rows] == ["zzz", None, "aaa", None]


@pytest.mark.slow
def test_of_processes_that_start_one_id_at_once_one_runs_it_and_all_get_its_result(
    project: Path,
) -> None:
    def start(_: int) -> subprocess.CompletedProcess[str]:
        run = [*COMMAND, "run", "waiting.waits", "n=5", "--run-id", "one", "--json"]
        return subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)

    (project / "go").touch()
    with ThreadPoolExecutor(3) as threads:
        done = list(threads.map(start, range(3)))
    assert [each.returncode for each in done] == [0, 0, 0], done
    assert [json.loads(each.stdout)["results"] for each in done] == [5, 5, 5]
    assert calls(project) == 1
    detached = call("run", "waiting.waits", "n=5", "--run-id", "one", "--detach", "--json")
    assert json.loads(detached.stdout)["is_new"] is False
