"""The registry of 100,000 runs, against MLflow's SQLite store with the same runs.

python benchmarks/registry.py                  # ours alone
python benchmarks/registry.py --mlflow         # installs mlflow into a folder of its own, minutes
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.registry import RunRegistry

BIN = Path(sys.executable).parent
WHERE = "config.lr < 1e-3"
BOTH = "config.lr < 1e-3 and results.accuracy > 0.9"
FEW = "results.accuracy > 0.9999"
# MLflow's own table of runs, written in bulk: its API takes 15 ms for each run
MLFLOW = """
import json, sys, time, uuid
from pathlib import Path
import mlflow, sqlalchemy
from mlflow.tracking import MlflowClient
store, runs, rounds = sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), int(sys.argv[3])
uri = f"sqlite:///{store}"
client = MlflowClient(uri)
experiment = client.create_experiment("bench")
started = time.perf_counter()
for _ in range(20):
    run = client.create_run(experiment)
    client.log_batch(
        run.info.run_id,
        metrics=[mlflow.entities.Metric(k, v, 0, 0) for k, v in runs[0]["results"].items()],
        params=[mlflow.entities.Param(k, str(v)) for k, v in runs[0]["config"].items()],
    )
    client.set_terminated(run.info.run_id)
record_ms = (time.perf_counter() - started) / 20 * 1e3
engine = sqlalchemy.create_engine(uri)
with engine.begin() as db:
    for start in range(0, len(runs), 5000):
        batch = [(uuid.uuid4().hex, r) for r in runs[start : start + 5000]]
        db.execute(sqlalchemy.text(
            "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id,"
            " status, start_time, end_time, source_version, lifecycle_stage, artifact_uri,"
            " experiment_id) VALUES (:id, :id, 'LOCAL', '', '', 'me', 'FINISHED', :t, :t, '',"
            " 'active', '', :e)"),
            [{"id": i, "t": r["time_ms"], "e": int(experiment)} for i, r in batch])
        db.execute(sqlalchemy.text(
            "INSERT INTO params (key, value, run_uuid) VALUES (:k, :v, :id)"),
            [{"k": k, "v": str(v), "id": i} for i, r in batch for k, v in r["config"].items()])
        db.execute(sqlalchemy.text(
            "INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)"
            " VALUES (:k, :v, 0, 0, 0, :id)"),
            [{"k": k, "v": v, "id": i} for i, r in batch for k, v in r["results"].items()])
def timed(filter_string):
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        found = client.search_runs(
            [experiment], filter_string, max_results=50, order_by=["attributes.start_time DESC"]
        )
        times.append((time.perf_counter() - started) * 1e3)
    return sorted(times[1:])[rounds // 2], len(found)
one = client.search_runs([experiment], "", max_results=1)[0].info.run_id
started = time.perf_counter(); client.get_run(one); show = (time.perf_counter() - started) * 1e3
print(json.dumps({
    "newest 50": timed("")[0],
    "show": show,
    # its parameters are strings: they can be compared with = and LIKE only
    "config.steps == 7": timed("params.steps = '7'")[0],
    "results.accuracy > 0.9999": timed("metrics.accuracy > 0.9999")[0],
    # ordering 100,000 runs by a metric did not end in four minutes, and is left out
    "record a run": record_ms,
}))
"""
MLFLOW_LIST = """
import sys
from mlflow.tracking import MlflowClient
client = MlflowClient(f"sqlite:///{sys.argv[1]}")
for run in client.search_runs(["1"], "", max_results=50): print(run.info.run_id)
"""


def make_runs(count: int) -> list[dict[str, Any]]:
    """Return what distinguishes the runs: time, config, results."""
    rng, start = random.Random(0), datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    made = []
    for number in range(count):
        moment = start + datetime.timedelta(minutes=number)
        config: dict[str, Any] = {f"p{n}": rng.random() for n in range(7)}
        config |= {"lr": 10 ** rng.uniform(-5, -1), "steps": rng.randrange(1000)}
        config |= {"model": rng.choice(["vit", "resnet", "gpt"])}
        results = {f"m{n}": rng.random() for n in range(8)}
        results |= {"loss": rng.random(), "accuracy": rng.random()}
        run_id = f"{moment:%Y%m%d-%H%M%S}-{number % 1000:03}{rng.randrange(65536):04x}"
        made.append(
            {
                "run_id": run_id,
                "created_at": moment.isoformat(timespec="milliseconds"),
                "time_ms": int(moment.timestamp() * 1000),
                "config": config,
                "results": results,
            }
        )
    return made


def write_folders(runs_dir: Path, runs: list[dict[str, Any]]) -> None:
    """Write run folders with the files of a real run, a manifest with 250 packages included."""
    packages = {f"package-{number}": "1.2.3" for number in range(250)}
    for run in runs:
        run_id = run["run_id"]
        folder = runs_dir / run_id
        folder.mkdir(parents=True)
        spec = {
            "run_id": run_id,
            "experiment": "train.Train",
            "config": run["config"],
            "seed": 1,
            "created_at": run["created_at"],
            "tags": {"team": "vision"},
        }
        result = {
            "run_id": run_id,
            "status": "success",
            "experiment_class": "train.Train",
            "results": run["results"],
            "timings": {"total_s": 1.0},
        }
        manifest = {"run_id": run_id, "seed": 1, "environment": {"packages": packages}}
        for name, record in (("spec", spec), ("manifest", manifest), ("result", result)):
            (folder / f"{name}.json").write_text(json.dumps(record))
        (folder / "log.txt").touch()


def median_ms(act: Callable[[], object], rounds: int) -> float:
    """Return the median of some rounds, after one that is not counted."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        act()
        times.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[1:])


def process_ms(command: list[str], environment: dict[str, str], rounds: int) -> float:
    """Return the median time of a whole process."""

    def act() -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)

    return median_ms(act, rounds)


def measure_ours(runs_dir: Path, rounds: int) -> dict[str, float]:
    """Return milliseconds by what is done; each opens the index anew, as a command does."""

    numbers = itertools.count()

    def rows(where: str | None = None, sort: str | None = None) -> Callable[[], object]:
        return lambda: RunRegistry(runs_dir).rows(50, RunFilter(where=where), sort)

    def add_and_list() -> None:
        name = f"20990101-000000-{next(numbers):07}"
        with recorded(runs_dir, name, is_listed=True):
            shutil.copytree(runs_dir / newest[0].run_id, runs_dir / name)
        RunRegistry(runs_dir).rows(50)

    started = time.perf_counter()
    newest = RunRegistry(runs_dir).rows(50)
    found = {"newest 50, without an index": (time.perf_counter() - started) * 1e3}
    started = time.perf_counter()
    RunRegistry(runs_dir).rows(50, RunFilter(where=WHERE))
    found["first filter: reads all runs"] = (time.perf_counter() - started) * 1e3
    time.sleep(2.1)  # younger times of the folder are not trusted
    RunRegistry(runs_dir).rows(50)
    prefix = newest[20].run_id[:-2]
    found |= {
        "newest 50": median_ms(rows(), rounds),
        "show": median_ms(lambda: RunRegistry(runs_dir).find(prefix).outcome(), rounds),
        "show last": median_ms(lambda: RunRegistry(runs_dir).find("last").outcome(), rounds),
        WHERE: median_ms(rows(WHERE), rounds),
        BOTH: median_ms(rows(BOTH), rounds),
        FEW: median_ms(rows(FEW), rounds),
        "config.steps == 7": median_ms(rows("config.steps == 7"), rounds),
        "best 50 by accuracy": median_ms(rows(sort="-results.accuracy"), rounds),
        "best 50 by seconds": median_ms(rows(sort="-seconds"), rounds),
        "newest 50 after a new run": median_ms(add_and_list, rounds),
    }
    return found


def measure_processes(runs_dir: Path, index_dir: Path, rounds: int) -> dict[str, float]:
    """Return milliseconds of whole commands."""
    environment = {
        **os.environ,
        "ML_EXPERIMENTS_RUNS_DIR": str(runs_dir),
        "ML_EXPERIMENTS_INDEX_DIR": str(index_dir),
    }
    command = [str(BIN / "ml-experiments")]
    return {
        "--help": process_ms([*command, "--help"], environment, rounds),
        "runs list": process_ms([*command, "runs", "list", "--limit", "50"], environment, rounds),
        "runs list --where": process_ms(
            [*command, "runs", "list", "--where", WHERE], environment, rounds
        ),
        "runs show last": process_ms([*command, "runs", "show", "last"], environment, rounds),
    }


def measure_mlflow(scratch: Path, runs: list[dict[str, Any]], rounds: int) -> dict[str, float]:
    """Install MLflow into a virtual environment and measure its SQLite store there."""
    venv.create(scratch / "venv", with_pip=True)
    python = str(scratch / "venv" / "bin" / "python")
    install = ["mlflow-skinny", "sqlalchemy", "alembic", "pandas"]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *install], check=True)
    (scratch / "runs.json").write_text(json.dumps(runs))
    store = str(scratch / "mlflow.sqlite3")
    done = subprocess.run(
        [python, "-c", MLFLOW, store, str(scratch / "runs.json"), str(rounds)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    listing = [python, "-c", MLFLOW_LIST, store]
    return found | {"runs list": process_ms(listing, dict(os.environ), rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=10, help="of each query, after a warm-up")
    parser.add_argument("--mlflow", action="store_true", help="compare with MLflow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        os.environ["ML_EXPERIMENTS_INDEX_DIR"] = str(scratch / "index")
        runs = make_runs(options.runs)
        write_folders(scratch / "runs", runs)
        ours = measure_ours(scratch / "runs", options.rounds)
        ours |= measure_processes(scratch / "runs", scratch / "index", options.rounds)
        theirs = measure_mlflow(scratch, runs, options.rounds) if options.mlflow else {}
    print(f"{options.runs:,} runs{'ours ms':>32} {'MLflow ms':>10}")
    for what in dict.fromkeys([*ours, *theirs]):
        row = [f"{side[what]:.1f}" if what in side else "" for side in (ours, theirs)]
        print(f"{what:<38} {row[0]:>8} {row[1]:>10}")


if __name__ == "__main__":
    main()
