"""What running experiments on Modal costs in time, against a bare `modal.Function`.

    python benchmarks/modal_overhead.py

The same body runs two ways on the same emulator: in a bare function, and as an experiment, whose
every run gets a folder on the volume with spec, manifest, log and result, committed before the
result travels. Prints milliseconds per input for `map` and for single warm calls, for bodies of
several lengths, and the ratio to the bare function.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from statistics import median
from typing import Any

import modal

from ml_experiments.backends.modal.container import run_remote as modal_app
from ml_experiments.backends.modal.image import package_image, with_this_package
from ml_experiments.backends.modal.mounts import CACHE_MOUNT, RUNS_MOUNT, cache_volume, runs_volume
from ml_experiments.backends.modal.preflight.own_package import RUN_ROOTS
from ml_experiments.backends.modal.request import make_request
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.spec import RunSpec, new_run_id
from modal_emulator import Emulator

# what runs in the containers, which lack the client's part of this package
BODY = """
import time

def body(config):
    time.sleep(config["seconds"])  # as for a GPU: the processor is free
    return {"x": config["x"]}

class Work:
    def __init__(self, config):
        self.config = config

    def run(self):
        return body(self.config)
"""
app = modal.App("modal-overhead")


def functions(file: Path) -> tuple[Any, Any]:
    """Return a bare function with the body, and that which runs experiments."""
    file.write_text(BODY)
    image = with_this_package(package_image(), *RUN_ROOTS)
    image = image.add_local_file(file, f"/root/{file.name}")
    options: dict[str, Any] = {"image": image, "gpu": "A10", "max_containers": 1}
    sys.path.append(str(file.parent))
    body = importlib.import_module(file.stem).body
    volumes: dict[str | PurePosixPath, Any] = {
        CACHE_MOUNT: cache_volume(),
        RUNS_MOUNT: runs_volume(),
    }
    return (
        app.function(**options, volumes={CACHE_MOUNT: cache_volume()}, serialized=True)(body),
        app.function(**options, volumes=volumes)(modal_app.run_remote),
    )


def request(config: dict[str, Any]) -> dict[str, Any]:
    """Return what `run_remote` takes for one run."""
    spec = RunSpec(
        run_id=new_run_id(),
        experiment="timed_body:Work",
        config=config,
        seed=0,
        created_at="",
        backend="modal",
    )
    return make_request(spec, Manifest(run_id=spec.run_id), (), None).to_dict()


def seconds_per_input(function: Any, inputs: list[Any]) -> float:
    started = time.perf_counter()
    outputs = list(function.map(inputs))
    took = time.perf_counter() - started
    assert len(outputs) == len(inputs)
    assert all(output.get("status", "success") == "success" for output in outputs)
    return took / len(inputs)


def seconds_per_call(function: Any, inputs: list[Any]) -> float:
    times = []
    for each in inputs:
        started = time.perf_counter()
        function.remote(each)
        times.append(time.perf_counter() - started)
    return median(times)


def measure(
    function: Any, make: Callable[[dict[str, Any]], Any], inputs: int, seconds: float
) -> dict[str, float]:
    def some(count: int) -> list[Any]:
        return [make({"x": x, "seconds": seconds}) for x in range(count)]

    list(function.map(some(3)))  # starts the container
    return {
        "map_s": seconds_per_input(function, some(inputs)),
        "call_s": seconds_per_call(function, some(max(10, inputs // 10))),
    }


def main(inputs: int, body_s: list[float], folder: Path) -> None:
    bare, experiment = functions(folder / "timed_body.py")
    columns = ("body", "map: bare", "experiment", "ratio", "call: bare", "experiment", "ratio")
    print("".join(f"{column:>12}" for column in columns), "  (ms an input)")
    for seconds in body_s:
        with app.run():  # its containers end with it: each body starts with new ones
            plain = measure(bare, lambda config: config, inputs, seconds)
            ours = measure(experiment, request, inputs, seconds)
            cells = [f"{seconds * 1e3:.0f}"]
            for what in ("map_s", "call_s"):
                cells += [f"{plain[what] * 1e3:.1f}", f"{ours[what] * 1e3:.1f}"]
                cells += [f"{ours[what] / plain[what]:.2f}"]
        print("".join(f"{cell:>12}" for cell in cells), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=200)
    parser.add_argument("--body-s", type=float, nargs="+", default=[0.0, 0.05, 0.1, 0.2])
    arguments = parser.parse_args()
    with Emulator() as emulator, tempfile.TemporaryDirectory() as scratch:
        os.environ.update(emulator.environment)  # before the process's first Modal client
        main(arguments.inputs, arguments.body_s, Path(scratch))
