"""Shows that this package works on Modal: `make prove-modal`.

The document's quick start, the cache tools, a function of one's own, a timeout and a cancelled run,
on the smallest GPU. It asks first, and prints what held. Nothing is deleted: the folders of its
runs stay on the volume ml-experiments-runs and below the folder of --runs-dir.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import modal

from ml_experiments import Error, ModalBackend, Observer, RunSpec, submit_experiment
from ml_experiments.backends.modal.billing.prices import container_usd_per_s
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.core.modal_runner import (
    app,
    clear_cache,
    list_cached_models,
    run_experiment_local,
)

GPU_TYPE = "t4"
# what Modal limits a container with this GPU to
CORES, MEMORY_GIB = 16, 32
TIMEOUTS_S = {"quick start": 300, "own function": 60, "timeout": 5, "cancelled run": 120}
CACHE_TIMEOUT_S = 120
WAIT_S = 900

OWN_FUNCTION = f"""
from ml_experiments.core.modal_runner import create_gpu_function

@create_gpu_function(gpu_type={GPU_TYPE!r}, timeout={TIMEOUTS_S["own function"]})
def square(x: int):
    print("the square is", x * x)
"""

SLEEPS = """
import time

class Sleeps:
    def __init__(self, config):
        self.seconds = config["seconds"]

    def run(self):
        print("sleeping", flush=True)
        time.sleep(self.seconds)
"""


def max_cost_usd() -> float:
    """Return the highest possible cost: every step takes its whole timeout."""
    seconds = sum(TIMEOUTS_S.values()) + 2 * CACHE_TIMEOUT_S
    return seconds * container_usd_per_s(parse_gpu(GPU_TYPE).choices[0], CORES, MEMORY_GIB)


def quick_start(runs_dir: Path) -> str:
    """Draw a picture with the model of this package."""
    result = run_experiment_local(
        experiment_config={"model_name": "tiny-digits", "prompt": "a red seven", "num_images": 1},
        experiment_class_path="ml_experiments.tasks.text_to_image.TextToImageExperiment",
        gpu_type=GPU_TYPE,
        timeout=TIMEOUTS_S["quick start"],
        runs_dir=runs_dir,
    )
    assert result["status"] == "success", result["error"]
    assert len(result["results"]["images"]) == 1, result["results"]
    return f"run {result['run_id']}, one picture"


def cache_tools(_runs_dir: Path) -> str:
    """List the cache, and let clear_cache say what it would delete."""
    with app.run():
        names = list_cached_models.remote()
        stats = clear_cache.remote(pattern="no-such-owner/*")
    assert isinstance(names, list)
    assert (stats["deleted"], stats["dry_run"]) == (0, True), stats
    return f"{len(names)} models; a dry run deletes nothing"


def own_function(_runs_dir: Path) -> str:
    """Run a function of a file of one's own, as the document shows it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "own.py").write_text(OWN_FUNCTION, encoding="utf-8")
        command = [sys.executable, "-m", "modal", "run", "own.py::square", "--x", "12"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the square is 144" in done.stdout, done.stdout
    return "create_gpu_function, modal run"


def timeout(runs_dir: Path) -> str:
    """Let a run take longer than it may."""
    limit_s = TIMEOUTS_S["timeout"]
    result = run_experiment_local(
        experiment_config={"seconds": 10 * limit_s},
        experiment_class_path=_sleeps(runs_dir),
        gpu_type=GPU_TYPE,
        timeout=limit_s,
        runs_dir=runs_dir,
    )
    assert result["status"] == "error", result
    assert result["error"]["kind"] == "timeout", result["error"]
    return f"run {result['run_id']} ended after {limit_s} s"


def cancelled_run(runs_dir: Path) -> str:
    """Cancel a run as soon as it prints."""
    printed = threading.Event()

    class Watch(Observer):
        def log(self, _spec: RunSpec, data: bytes) -> None:
            if b"sleeping" in data:
                printed.set()

    limit_s = TIMEOUTS_S["cancelled run"]
    with ModalBackend() as backend:
        handle = submit_experiment(
            _sleeps(runs_dir),
            {"seconds": limit_s},
            backend=backend,
            observer=Watch(),
            timeout_s=limit_s,
            gpu=GPU_TYPE,
            runs_dir=runs_dir,
        )
        assert printed.wait(WAIT_S), "the run did not print"
        handle.cancel()
        result = handle.result()
    assert result.status == "cancelled", result
    return f"run {result.run_id} ended at once"


def _sleeps(runs_dir: Path) -> str:
    file = runs_dir / "sleeps.py"
    file.write_text(SLEEPS, encoding="utf-8")
    return f"{file}:Sleeps"


STEPS: dict[str, Callable[[Path], str]] = {
    "quick start": quick_start,
    "cache tools": cache_tools,
    "own function": own_function,
    "timeout": timeout,
    "cancelled run": cancelled_run,
}


def main() -> int:
    """Ask, run the steps, print what held; the exit code is 1 if one of them didn't."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--yes", action="store_true", help="don't ask")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"of: {', '.join(STEPS)}")
    options = parser.parse_args()
    if unknown := [step for step in options.steps if step not in STEPS]:
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(STEPS)}")
    try:
        modal.Client.from_env().hello()
    except modal.exception.Error as e:
        print(f"Modal can't be reached: {e}", file=sys.stderr)
        return 2
    print(
        f"This runs on the Modal workspace of your token, on a {GPU_TYPE.upper()}, and costs at "
        f"most ${max_cost_usd():.2f}; an image of 5 GB is built if it isn't there."
    )
    print("" if options.yes else "Go on? [y/N] ", end="", flush=True)
    # no terminal, no answer: that is a no
    if not options.yes and sys.stdin.readline().strip().lower() != "y":
        print("Nothing was run.")
        return 2
    options.runs_dir.mkdir(parents=True, exist_ok=True)
    held = {step: prove(step, options.runs_dir) for step in options.steps or STEPS}
    print(f"{sum(held.values())} of {len(held)} held")
    return 0 if all(held.values()) else 1


def prove(step: str, runs_dir: Path) -> bool:
    """Run a step, and print whether it held."""
    try:
        found = STEPS[step](runs_dir)
    except (AssertionError, Error, modal.exception.Error) as e:
        print(f"failed  {step}: {type(e).__name__}: {e}", flush=True)
        return False
    print(f"held    {step}: {found}", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
