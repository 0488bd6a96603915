"""Small experiments that behave in every way that a run can end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr

from ml_experiments import Experiment, ExperimentConfig, SoftTimeout, current_run


class Plain:
    """The smallest contract: a config and run()."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def run(self) -> dict[str, Any]:
        return {"config": self.config, "pid": os.getpid()}


class Fit(Experiment):
    """Typed config, setup, metrics, progress, artifacts."""

    class Config(ExperimentConfig):
        model_name: str = "tiny"
        steps: int = Field(3, ge=0)
        optimizer: Literal["adam", "sgd"] = "adam"

    setup_fields = ("model_name",)

    def setup(self) -> None:
        self.set_up_with = self.config.model_name
        self.setups = getattr(self, "setups", 0) + 1

    def run(self) -> dict[str, Any]:
        run = current_run()
        for step in range(self.config.steps):
            run.log({"loss": 1 / (step + 1)}, step=step)
            run.progress(step + 1, self.config.steps)
            print(f"step {step}")
        (run.output_dir / "weights.txt").write_text("1 2 3")
        return {
            "set_up_with": self.set_up_with,
            "instance": id(self),
            "setups": self.setups,
            "pid": os.getpid(),
            "steps": self.config.steps,
        }


class Draw(Experiment):
    """Draws random numbers from every source, some of them imported inside run()."""

    def run(self) -> dict[str, Any]:
        import random

        import numpy as np

        return {"random": random.random(), "numpy": float(np.random.rand())}


class DrawTorch(Experiment):
    def run(self) -> float:
        import torch

        return float(torch.rand(()))


class Ends:
    """Ends in the way that its config names."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def run(self) -> Any:
        run = current_run()
        run.log({"before": 1.0}, step=0)
        (run.output_dir / "partial.txt").write_text("kept")
        return getattr(self, self.config["how"])()

    def value_error(self) -> None:
        raise ValueError("the loss is not a number")

    def chained(self) -> None:
        try:
            self.value_error()
        except ValueError as e:
            raise RuntimeError("training failed") from e

    def cuda_oom_by_type(self) -> None:
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def cuda_oom_by_message(self) -> None:
        raise RuntimeError("cuBLAS failed: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    def memory_error(self) -> None:
        bytearray(1 << 62)

    def missing_module(self) -> None:
        import a_package_that_is_not_there  # noqa: F401

    def sys_exit(self) -> None:
        sys.exit(3)

    def os_exit(self) -> None:
        os._exit(7)

    def segfault(self) -> None:
        ctypes.string_at(0)

    def sigkill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def unpicklable(self) -> None:
        class Unpicklable(Exception):
            def __reduce__(self) -> str:
                raise TypeError("no pickle of this")

        raise Unpicklable("still told")

    def unprintable(self) -> None:
        class Unprintable(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text either")

        raise Unprintable

    def not_utf8(self) -> str:
        os.write(1, b"caf\xe9 \xff\xfe\n")
        print("lone surrogate: \udc80")
        return "done"

    def sleeps(self) -> str:
        time.sleep(60)
        return "slept"

    def ignores_soft_timeout(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                time.sleep(60)
            except SoftTimeout:
                continue

    def ignores_interrupt(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                print("not now", flush=True)

    def partial_results(self) -> dict[str, Any]:
        done = 0
        try:
            while True:
                time.sleep(0.01)
                done += 1
        except SoftTimeout:
            return {"done": done}

    def leaves_children(self) -> list[int]:
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        inside = subprocess.Popen(sleep)
        outside = subprocess.Popen(sleep, start_new_session=True)
        return [inside.pid, outside.pid]

    def leaves_children_and_sleeps(self) -> None:
        pids = self.leaves_children()
        Path(self.config["pids"]).write_text(" ".join(map(str, pids)))
        time.sleep(60)

    def unportable(self) -> dict[str, Any]:
        return {"good": 1, "bad": [object()]}

    def many_lines(self) -> int:
        for line in range(100_000):
            print(f"line {line}")
        return 100_000

    def many_lines_and_fails(self) -> None:
        self.many_lines()
        self.value_error()

    def one_long_line(self) -> int:
        print("x" * 3_000_000)
        return 3_000_000

    def subprocess_output(self) -> str:
        subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)
        return "done"


class Secretive(Experiment):
    """Prints, logs, reports and returns the secrets that it was given."""

    class Config(ExperimentConfig):
        api_key: SecretStr
        note: str = ""

    def run(self) -> dict[str, Any]:
        value = self.config.api_key.get_secret_value()
        token = os.environ.get("PLANTED_TOKEN", "")
        run = current_run()
        run.log({"note": f"{value} {token}"}, step=0)
        run.progress(1, 1, text=f"{value} {token}")
        print(f"printed {value} {token}")
        if self.config.note == "raise":
            raise ValueError(f"failed with {value} {token}")
        return {"value": value, "token": token, "works": len(value)}


class NoRun:
    pass


def train(config: dict[str, Any]) -> dict[str, Any]:
    return {"got": config}


def fit(lr: float, epochs: int = 2, *, name: str = "x") -> dict[str, Any]:
    return {"lr": lr, "epochs": epochs, "name": name}


class Counts(Experiment):
    """Counts to a number, resuming from its checkpoint; dies at `die_at` on the first try."""

    class Config(ExperimentConfig):
        until: int = 10
        die_at: int = 5

    def run(self) -> dict[str, Any]:
        file = current_run().checkpoint_dir / "count.txt"
        first = int(file.read_text()) if file.exists() else 0
        for count in range(first, self.config.until):
            if first == 0 and count == self.config.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            file.write_text(str(count + 1))
        return {"first": first, "until": self.config.until}
