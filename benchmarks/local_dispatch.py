"""What a run costs besides the experiment: 200 trivial runs on this machine, with full run folders.

Three kinds of ours: a function, which has a process for each run; one whose module imports torch;
a class with `setup_fields`, whose process serves all runs. The first and the last also in a git
work tree, whose state is part of each run's manifest. Against `concurrent.futures` with a
process for each task, submitit's local executor (a process and a pickle for each job), a pool of
one process that keeps no record at all, and what the disk takes to write a run folder's files,
without any run; one after the other.

    python benchmarks/local_dispatch.py

The disk's part varies: on ext4, creating files is slower for some minutes after many deletions,
such as those of the last benchmark. To exclude the disk, set TMPDIR=/dev/shm.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import submitit

from ml_experiments import LocalBackend, Observer, run_experiment
from ml_experiments.serialization.files import open_atomically

EXPERIMENTS = {
    "function": "def trivial(x: int): return x + 1\n",
    "imports torch": "import torch\ndef trivial(x: int): return x + 1\n",
    "setup_fields": (
        "from ml_experiments import Experiment, ExperimentConfig\n"
        "class trivial(Experiment):\n"
        "    class Config(ExperimentConfig):\n"
        "        x: int\n"
        "    setup_fields = ()\n"
        "    def run(self): return self.config.x + 1\n"
    ),
}


def trivial(config: dict[str, Any]) -> int:
    return int(config["x"]) + 1


def timed(run: Callable[[int], int], runs: int) -> list[float]:
    """Return the seconds of each of so many runs, after a first one that isn't counted."""
    costs = []
    for x in range(-1, runs):
        started = time.perf_counter()
        assert run(x) == x + 1
        costs.append(time.perf_counter() - started)
    return costs[1:]


def with_ours(kind: str, runs: int, folder: Path) -> list[float]:
    file = folder / f"{kind.replace(' ', '_')}.py"
    file.write_text(EXPERIMENTS[kind])
    os.chdir(folder)
    with LocalBackend() as backend:

        def run(x: int) -> int:
            result = run_experiment(
                f"{file}:trivial",
                {"x": x},
                backend=backend,
                runs_dir=folder / kind,
                observer=Observer(),
            )
            return int(result.results)

        return timed(run, runs)


def with_ours_in_git(kind: str, runs: int, folder: Path) -> list[float]:
    folder.mkdir()
    (folder / f"{kind}.py").write_text(EXPERIMENTS[kind])
    author = ("-c", "user.name=benchmark", "-c", "user.email=benchmark@localhost")
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "experiment"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return with_ours(kind, runs, folder)


def with_submitit(runs: int, folder: Path) -> list[float]:
    executor = submitit.LocalExecutor(folder=folder)
    return timed(lambda x: int(executor.submit(trivial, {"x": x}).result()), runs)


def with_process_pool(runs: int, max_tasks_per_child: int | None) -> list[float]:
    with ProcessPoolExecutor(1, max_tasks_per_child=max_tasks_per_child) as pool:
        return timed(lambda x: pool.submit(trivial, {"x": x}).result(), runs)


def files_alone(runs: int, folder: Path, like: Path) -> list[float]:
    """Write the files of one run again and again, as they are written there, fsync included."""
    contents = {file.name: file.read_bytes() for file in like.iterdir()}

    def write(x: int) -> int:
        run = folder / str(x)
        run.mkdir(parents=True)
        for name in ("log.txt", "spec.json", "manifest.json"):
            (run / name).write_bytes(contents[name])
        for name in ("manifest.json", "result.json"):
            with open_atomically(run / name, durable=name == "result.json") as file:
                file.write(contents[name])
        return x + 1

    return timed(write, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--submitit-runs", type=int, default=10, help="it takes a second a run")
    arguments = parser.parse_args()
    logging.getLogger("submitit").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        folder, runs = Path(scratch), arguments.runs
        costs = {f"ours, {kind}": with_ours(kind, runs, folder) for kind in EXPERIMENTS}
        costs |= {
            f"ours, {kind}, in git": with_ours_in_git(kind, runs, folder / f"git {kind}")
            for kind in ("function", "setup_fields")
        }
        one_run = next((folder / "function").glob("2*"))
        costs |= {
            "a process for each task": with_process_pool(runs, 1),
            "submitit local": with_submitit(arguments.submitit_runs, folder / "submitit"),
            "one process, no record": with_process_pool(runs, None),
            "a run's files alone": files_alone(runs, folder / "files", one_run),
        }
    ours = statistics.median(costs["ours, function"])
    print(f"{'executor':<27} {'runs':>5} {'median ms':>10} {'p95 ms':>8} {'times ours':>11}")
    for name, values in costs.items():
        median, p95 = statistics.median(values), statistics.quantiles(values, n=20)[-1]
        print(
            f"{name:<27} {len(values):>5} {median * 1e3:>10.2f} {p95 * 1e3:>8.2f} "
            f"{median / ours:>11.2f}"
        )


if __name__ == "__main__":
    main()
