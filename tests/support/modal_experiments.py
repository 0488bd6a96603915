"""Experiments that the Modal tests send to the emulator."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from collections import UserDict
from collections.abc import Callable, ItemsView
from pathlib import Path
from typing import Any

from ml_experiments import Experiment, ExperimentConfig, current_run


class Greet(Experiment):
    """Uses a bit of everything."""

    class Config(ExperimentConfig):
        name: str = "world"
        steps: int = 2

    def run(self) -> dict[str, Any]:
        run = current_run()
        for step in range(self.config.steps):
            print(f"greeting {self.config.name}, step {step}")
            run.log({"loss": 1 / (step + 1)}, step=step)
            run.progress(step + 1, self.config.steps, text="greeting")
        (run.output_dir / "deep").mkdir()
        (run.output_dir / "deep" / "greeting.txt").write_text(f"hello {self.config.name}")
        (run.checkpoint_dir / "large.bin").write_bytes(b"x")
        return {"greeting": f"hello {self.config.name}", "nan": float("nan"), "seed": run.seed}


class Environment(Experiment):
    """Returns what its process can see of the environment."""

    class Config(ExperimentConfig):
        names: list[str] = []

    def run(self) -> dict[str, Any]:
        return {
            "variables": {name: os.environ.get(name) for name in self.config.names},
            "cache_is_mounted": Path(os.environ["HF_HOME"]).parent.is_dir(),
            "gpu": os.environ.get("MODAL_EMULATOR_GPU"),
            "gpu_count": os.environ.get("MODAL_EMULATOR_GPU_COUNT"),
            "pid": os.getpid(),
            "import_path": sys.path[:1],
        }


class Leaks(Experiment):
    """Prints, logs, raises and returns a secret."""

    class Config(ExperimentConfig):
        api_key: str = ""
        variable: str = "PLANTED"

    def run(self) -> dict[str, Any]:
        secrets = [os.environ.get(self.config.variable, ""), self.config.api_key]
        text = " and ".join(filter(None, secrets))
        run = current_run()
        print("printed", text, flush=True)
        os.write(2, f"written {text}\n".encode())
        run.log({"note": text})
        run.progress(1, 2, text=text)
        raise ValueError(f"raised {text}")


class Odd(Exception):
    """An exception that the client may not be able to import."""


class Fails(Experiment):
    """Fails in one of several ways."""

    class Config(ExperimentConfig):
        how: str

    def run(self) -> Any:
        run = current_run()
        run.log({"loss": 0.5}, step=1)
        (run.output_dir / "partial.txt").write_text("so far")
        print("before the end", flush=True)
        match self.config.how:
            case "odd":
                raise Odd("only the container knows me")
            case "oom":
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")
            case "exit":
                os._exit(3)
            case "kill":
                time.sleep(5)  # long enough for a background commit
                os.kill(os.getpid(), signal.SIGKILL)
            case "sys.exit":
                sys.exit(4)
            case "object":
                return {"fine": 1, "bad": Odd()}
            case "soft":
                time.sleep(300)
            case "hard":
                stubborn_sleep(300)
        return None


def stubborn_sleep(seconds: float) -> None:
    """Sleep through every signal that Python can see."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        try:
            time.sleep(1)
        except BaseException:
            continue


class Resumes(Experiment):
    """Counts steps in a checkpoint, and returns the step at which it started.

    An attempt that begins at step 0 gets no further than `stuck_after`, unless that is 0.
    """

    class Config(ExperimentConfig):
        steps: int = 6
        step_s: float = 0.4
        stuck_after: int = 0

    def run(self) -> dict[str, Any]:
        run = current_run()
        file = run.checkpoint_dir / "step.txt"
        first = int(file.read_text()) if file.exists() else 0
        for step in range(first, self.config.steps):
            print(f"step {step}", flush=True)
            time.sleep(self.config.step_s)
            new = file.with_suffix(".new")
            new.write_text(str(step + 1))
            new.replace(file)  # a kill between the opening and the writing would leave it empty
            if first == 0 and step + 1 == self.config.stuck_after:
                time.sleep(3600)
        return {"started_at": first, "steps": self.config.steps}


class NeedsMemory(Experiment):
    """Saves a step, and runs out of memory unless it is on Modal, on one of some GPUs."""

    class Config(ExperimentConfig):
        fits: list[str]
        message: str = "CUDA out of memory. Tried to allocate 2.00 GiB"

    def run(self) -> dict[str, Any]:
        gpu = os.environ.get("MODAL_EMULATOR_GPU") or "none"
        run = current_run()
        seen = sorted(file.name for file in run.checkpoint_dir.iterdir())
        (run.checkpoint_dir / f"{len(seen)}-{gpu}").touch()
        print("on", gpu, flush=True)
        run.log({"attempt": len(seen)})
        if gpu not in self.config.fits:
            raise RuntimeError(self.config.message)
        return {"seen": seen, "gpu": gpu}


class Phases(Experiment):
    """Takes some seconds in one phase of its first attempt, and returns which attempt it was."""

    class Config(ExperimentConfig):
        slow: str = ""
        seconds: float = 3.0

    def setup(self) -> None:
        attempts = current_run().checkpoint_dir
        self.attempt = len(list(attempts.iterdir()))
        (attempts / str(self.attempt)).touch()
        self._take_time("setup")

    def run(self) -> dict[str, Any]:
        current_run().log({"attempt": self.attempt})
        self._take_time("run")
        if self.config.slow == "end":
            atexit.register(self._take_time, "end")
        return {"value": Unhurried(lambda: self._take_time("result")), "attempt": self.attempt}

    def _take_time(self, phase: str) -> None:
        if phase == self.config.slow and self.attempt == 0:
            print(f"in {phase}", flush=True)
            time.sleep(self.config.seconds)


class Unhurried(UserDict[str, str]):
    """Calls a function when its members are read, as when it is written."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(is_="whole")
        self._act = act

    def items(self) -> ItemsView[str, str]:
        self._act()
        return super().items()


class Warm(Experiment):
    """Returns whether setup() was kept from the previous run."""

    setup_fields = ("model",)

    class Config(ExperimentConfig):
        model: str = "a"
        x: int = 0

    def setup(self) -> None:
        self.set_up_in = f"{os.getpid()}-{time.monotonic()}"

    def run(self) -> dict[str, Any]:
        return {"x": self.config.x, "set_up_in": self.set_up_in}


class Counts(Experiment):
    """A plain class that waits to be cancelled."""

    class Config(ExperimentConfig):
        seconds: float = 300

    def run(self) -> dict[str, Any]:
        print("waiting", flush=True)
        current_run().log({"seen": 1})
        time.sleep(self.config.seconds)
        return {"waited": self.config.seconds}


class Plain:
    """Any class with a config and run()."""

    requirements = ("einops>=0.8",)

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def run(self) -> dict[str, Any]:
        return {"doubled": self.config["x"] * 2}


class Prints(Experiment):
    """Prints lines as fast as it can."""

    class Config(ExperimentConfig):
        lines: int

    def run(self) -> None:
        for line in range(self.config.lines):
            print(f"line {line} {'.' * 50}", flush=line % 100 == 0)
