"""What a run costs besides the experiment: 200 trivial runs, warm, with full run folders.

Against submitit's local executor (a process and a pickle a job), a bare ProcessPoolExecutor
(no record at all), and what the disk takes to write a run folder's files, without any run; in the
same process, in turn.

    python benchmarks/local_dispatch.py

The disk's part varies: on ext4, creating files is slower for some minutes after many deletions,
such as those of the last benchmark. To exclude the disk, set TMPDIR=/dev/shm.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import submitit

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.serialization.files import open_atomically


def trivial(config: dict[str, Any]) -> int:
    return int(config["x"]) + 1


def with_ours(runs: int, folder: Path) -> list[float]:
    costs = []
    with LocalBackend() as backend:
        for x in range(-1, runs):
            started = time.perf_counter()
            result = run_experiment(trivial, {"x": x}, backend=backend, runs_dir=folder)
            costs.append(time.perf_counter() - started)
            assert result.results == x + 1
    return costs[1:]


def with_submitit(runs: int, folder: Path) -> list[float]:
    executor = submitit.LocalExecutor(folder=folder)
    costs = []
    for x in range(-1, runs):
        started = time.perf_counter()
        assert executor.submit(trivial, {"x": x}).result() == x + 1
        costs.append(time.perf_counter() - started)
    return costs[1:]


def files_alone(runs: int, folder: Path, like: Path) -> list[float]:
    """Write the files of one run again and again, as they are written there, fsync included."""
    contents = {file.name: file.read_bytes() for file in like.iterdir()}
    costs = []
    for x in range(-1, runs):
        started = time.perf_counter()
        run = folder / str(x)
        run.mkdir(parents=True)
        for name in ("log.txt", "spec.json", "manifest.json"):
            (run / name).write_bytes(contents[name])
        for name in ("manifest.json", "result.json"):
            with open_atomically(run / name, durable=name == "result.json") as file:
                file.write(contents[name])
        costs.append(time.perf_counter() - started)
    return costs[1:]


def with_process_pool(runs: int) -> list[float]:
    costs = []
    with ProcessPoolExecutor(1) as pool:
        for x in range(-1, runs):
            started = time.perf_counter()
            assert pool.submit(trivial, {"x": x}).result() == x + 1
            costs.append(time.perf_counter() - started)
    return costs[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--submitit-runs", type=int, default=10, help="it takes a second a run")
    arguments = parser.parse_args()
    logging.getLogger("submitit").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        ours = with_ours(arguments.runs, Path(scratch) / "ours")
        one_run = next((Path(scratch) / "ours").glob("2*"))
        costs = {
            "ml_experiments": ours,
            "its files alone": files_alone(arguments.runs, Path(scratch) / "files", one_run),
            "submitit local": with_submitit(arguments.submitit_runs, Path(scratch) / "submitit"),
            "process pool": with_process_pool(arguments.runs),
        }
    our_median = statistics.median(ours)
    print(f"{'executor':<16} {'runs':>5} {'median ms':>10} {'p95 ms':>8} {'times ours':>11}")
    for name, values in costs.items():
        median, p95 = statistics.median(values), statistics.quantiles(values, n=20)[-1]
        print(
            f"{name:<16} {len(values):>5} {median * 1e3:>10.2f} {p95 * 1e3:>8.2f} "
            f"{median / our_median:>11.2f}"
        )


if __name__ == "__main__":
    main()
