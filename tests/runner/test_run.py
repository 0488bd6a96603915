"""`run_experiment` and its relatives, as a program calls them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import (
    BackendError,
    ConfigError,
    Error,
    Experiment,
    ExperimentConfig,
    LocalBackend,
    Observer,
    RunFailedError,
    current_run,
    run_experiment,
    submit_experiment,
    sweep,
)
from ml_experiments.runner.prepare import prepare_run
from tests.support.experiments import Ends, Fit, Plain


def test_a_run_needs_nothing_but_a_class(runs_dir: Path) -> None:
    result = run_experiment(Plain)
    assert result.raise_for_error() is result
    assert result.run_dir == runs_dir / result.run_id


def test_raise_for_error_says_what_happened() -> None:
    result = run_experiment(Ends, {"how": "missing_module"})
    with pytest.raises(RunFailedError, match="pip install a_package") as caught:
        result.raise_for_error()
    assert caught.value.result is result


def test_the_result_on_disk_is_the_result(runs_dir: Path) -> None:
    result = run_experiment(Fit, {"steps": 1})
    on_disk = json.loads((runs_dir / result.run_id / "result.json").read_text())
    assert on_disk == {**result.to_dict(), "run_dir": None}


def test_the_manifest_says_what_ran_where() -> None:
    result = run_experiment(Plain, seed=11)
    assert result.run_dir is not None
    manifest = json.loads((result.run_dir / "manifest.json").read_text())
    assert manifest["seed"] == 11
    assert manifest["client"]["pid"] == os.getpid()
    assert manifest["process"]["pid"] == result.results["pid"]
    assert manifest["process"]["hostname"] == socket.gethostname()
    assert manifest["environment"]["python"].startswith(f"{sys.version_info.major}.")
    assert manifest["environment"]["packages"]["psutil"]


def test_the_manifest_names_the_commit_and_what_differs_from_it(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    (tmp_path / "mine.py").write_text("def train(config): return 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    code = (
        "import json\nfrom pathlib import Path\n"
        "from ml_experiments import LocalBackend, run_experiment\n"
        "def code(backend):\n"
        "    run = run_experiment('mine.train', backend=backend)\n"
        "    return json.loads((run.run_dir / 'manifest.json').read_text())['code']\n"
        "with LocalBackend() as backend:\n"
        "    found = [code(backend)]\n"
        "    Path('mine.py').write_text('def train(config): return 2\\n')\n"
        "    found.append(code(backend))\n"
        "    Path('new.py').write_text('')\n"
        "    found.append(code(backend))\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    clean, edited, with_new_file = json.loads(done.stdout.splitlines()[-1])
    assert clean["commit"] == git("rev-parse", "HEAD")
    assert (clean["dirty"], edited["dirty"]) == (False, True)
    assert "+def train(config): return 2" in edited["diff"]
    assert "new.py" in with_new_file["untracked"]


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), True, "60"])
def test_a_timeout_must_be_a_number_above_zero(timeout_s: Any) -> None:
    with pytest.raises(ConfigError, match="timeout_s: given"):
        run_experiment(Plain, timeout_s=timeout_s)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7"])
def test_a_seed_must_be_a_whole_number(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed: given"):
        run_experiment(Plain, seed=seed)
    assert run_experiment(Plain, seed=2**63 - 1).status == "success"


def test_options_of_a_backend_go_with_its_name(runs_dir: Path) -> None:
    assert run_experiment(Plain, backend_options={"max_workers": 2}).status == "success"
    with LocalBackend() as backend, pytest.raises(ConfigError, match="open already"):
        run_experiment(Plain, backend=backend, backend_options={"max_workers": 2})


def test_an_unknown_backend_is_named_with_those_that_exist() -> None:
    with pytest.raises(Error, match=r"did you mean 'local'.*known: local, debug, slurm, modal"):
        run_experiment(Plain, backend="lokal")
    with LocalBackend() as backend, pytest.raises(Error, match="where a name is needed"):
        list(sweep(Plain, ["a=1,2"], backend=backend))  # type: ignore[arg-type]


class BadSetupFields(Experiment):
    class Config(ExperimentConfig):
        a: int = 0

    setup_fields = ("b",)

    def run(self) -> None:
        """Never runs."""


def test_setup_fields_must_be_fields_of_the_config() -> None:
    with (
        LocalBackend() as backend,
        pytest.raises(ConfigError, match=r"\['b'\].*known: a, seed"),
    ):
        prepare_run(BadSetupFields, {}, backend=backend)


def test_current_run_outside_a_run_says_how_to_start_one() -> None:
    with pytest.raises(Error, match="ml-experiments run"):
        current_run()


def test_logs_are_printed_and_prefixed_only_while_several_runs_are_live(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with LocalBackend(max_workers=2) as backend:
        run_experiment(Fit, {"steps": 1}, backend=backend, name="alone")
        assert capsys.readouterr().out == "step 0\n"
        handles = [
            submit_experiment(
                lines_together, {"mine": mine, "other": other}, backend=backend, name=mine
            )
            for mine, other in (("left", "right"), ("right", "left"))
        ]
        for handle in handles:
            handle.result(60)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 40
    assert "[left] line 10" in lines
    assert "[right] line 10" in lines


def lines_together(mine: str, other: str) -> None:
    """Print while the other run is live too: both wait for each other, before and after."""
    import time

    meeting = current_run().output_dir.parent.parent
    for moment in ("before", "after"):
        (meeting / f".{mine}-{moment}").touch()
        while not (meeting / f".{other}-{moment}").exists():
            time.sleep(0.01)
        if moment == "before":
            for line in range(20):
                print("line", line)


def test_results_that_live_in_files_are_loaded_on_demand(tmp_path: Path) -> None:
    import numpy as np

    result = run_experiment(arrays)
    loaded = result.load(result.results["weights"])
    assert np.array_equal(loaded, np.arange(6, dtype=np.float32).reshape(2, 3))
    assert result.results["nan"] != result.results["nan"]


def arrays(config: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    return {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "nan": np.float64("nan")}


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["Quick", "'script.Quick'"])
def test_a_script_without_main_guard_is_refused_instead_of_starting_itself_for_ever(
    tmp_path: Path, runs_dir: Path, experiment: str
) -> None:
    source = (
        "from ml_experiments import run_experiment\n"
        "class Quick:\n"
        "    def __init__(self, config): ...\n"
        "    def run(self): return 1\n"
    )
    call = f"print(run_experiment({experiment}).results)\n"
    for text, code, says in (
        (call, 1, 'put the call below: if __name__ == "__main__":'),
        (f'if __name__ == "__main__":\n    {call}', 0, "1\n"),
    ):
        (tmp_path / "script.py").write_text(source + text)
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert says in done.stdout + done.stderr
        assert len([p for p in runs_dir.iterdir() if p.is_dir()]) == 1 - code


@pytest.mark.parametrize("backend", ["local", LocalBackend])
def test_a_backend_that_is_not_open_is_told_so(backend: Any) -> None:
    with pytest.raises(BackendError, match=r"is not open; write: with LocalBackend\(\) as"):
        submit_experiment(Plain, backend=backend)


@pytest.mark.parametrize("observer", [print, Observer])
def test_what_is_no_observer_is_told_so_before_anything_starts(
    observer: Any, runs_dir: Path
) -> None:
    with pytest.raises(ConfigError, match="pass an instance of a subclass of"):
        run_experiment(Plain, observer=observer)
    assert list(runs_dir.glob("*/spec.json")) == []
