"""Experiments that leave their process, or what is around it, in a bad state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
import time
import types
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ml_experiments import Experiment, ExperimentConfig, current_run


def reads_a_damaged_cache(config: dict[str, Any]) -> float:
    """Touch a model whose branch names no commit, as after a power cut."""
    repo = Path(os.environ["HF_HOME"]) / "hub" / "models--org--name"
    for name in ("refs", "snapshots", "blobs"):
        (repo / name).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_bytes(bytes(40))
    with contextlib.suppress(Exception):
        from huggingface_hub import snapshot_download

        snapshot_download("org/name", local_files_only=True)
    return 0.93


class BreaksItsGpu(Experiment):
    """Fails so that every later call of CUDA fails too."""

    def setup(self) -> None:
        """Put a torch in place whose GPU is broken, as after a device-side assert."""

        def broken(*args: Any) -> Any:
            raise RuntimeError("CUDA error: device-side assert triggered")

        torch = types.ModuleType("torch")
        names = ("empty_cache", "reset_peak_memory_stats", "max_memory_allocated")
        cuda = dict.fromkeys(names, broken)
        torch.manual_seed = str  # type: ignore[attr-defined]
        torch.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
            is_available=lambda: True, get_device_name=broken, device_count=broken, **cuda
        )
        sys.modules["torch"] = torch

    def run(self) -> None:
        """Fail by an error of one's own."""
        raise ValueError("index 7 is out of bounds")


def fills_the_disk(config: dict[str, Any]) -> dict[str, str]:
    """Return a secret where no file can be written any more."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    if config.get("fails"):
        raise ValueError("an error of its own")
    return {"login": f"Bearer {os.environ['PLANTED_TOKEN']}"}


def makes_something_of_an_interrupt(config: dict[str, Any]) -> str:
    """Wait, and on an interrupt return or exit, as if all were well."""
    checkpoint = current_run().checkpoint_dir / "been_here"
    if checkpoint.exists():
        return "whole"
    checkpoint.touch()
    print("waiting", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        if config["how"] == "exit":
            sys.exit(1)
        if config["how"] == "raise":
            raise RuntimeError("interrupted") from None
    return "partial"


class Undeclared(Experiment):
    """Has a setup() and no setup_fields."""

    class Config(ExperimentConfig):
        model: str
        lr: float = 0.1

    def setup(self) -> None:
        """Load the model."""
        self.loaded = f"weights of {self.config.model}"

    def run(self) -> list[Any]:
        """Return what was loaded, and by which process."""
        return [self.loaded, os.getpid()]


class KeepsItsConfig(Experiment):
    """Takes values out of its config when it is made."""

    class Config(ExperimentConfig):
        model: str = "a"
        lr: float = 0.1

    setup_fields = ("model",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.lr = config.lr

    def run(self) -> float:
        """Return what was taken."""
        return self.lr


class HoldsSecret(Experiment):
    """Prints the secret of its config."""

    class Config(ExperimentConfig):
        key: SecretStr

    def run(self) -> None:
        """Print it."""
        print("the key is", self.config.key.get_secret_value(), flush=True)


left_behind: list[str] = []


def leaves_something_behind(config: dict[str, Any]) -> list[str]:
    """Return the container and what earlier runs have left; fail if the config says so."""
    found = list(left_behind)
    left_behind.append("something")
    if "fails" in config:
        raise ValueError(config["fails"])
    return [os.environ.get("MODAL_TASK_ID", ""), *found]


class Gone(BaseException):
    """No `Exception`, as what some test and async libraries raise."""


def ends_by(config: dict[str, Any]) -> None:
    """End by something that is no `Exception`, without a request from outside."""
    match config["what"]:
        case "base":
            raise Gone("bye")
        case "interrupt":
            raise KeyboardInterrupt("mine")
        case "async":
            asyncio.run(_cancel_oneself())


async def _cancel_oneself() -> None:
    task = asyncio.create_task(asyncio.sleep(9))
    task.cancel()
    await task


def closes_its_streams(config: dict[str, Any]) -> None:
    """Print, and close the standard streams."""
    print("still there", flush=True)
    sys.stdout.close()
    sys.stderr.close()


def returns_a_secret(config: dict[str, Any]) -> dict[str, Any]:
    """Return a secret as text, as bytes, and as the name of a value that has a file."""
    import numpy as np

    token = os.environ["PLANTED_TOKEN"]
    return {"text": token, "bytes": token.encode(), token: np.arange(3), "loss": 1}


def leaves_odd_files(config: dict[str, Any]) -> int:
    """Leave artifacts that not every file system or protocol takes."""
    folder = current_run().output_dir
    (folder / "epoch-3.ckpt").write_text("weights")
    (folder / "best.ckpt").symlink_to("epoch-3.ckpt")
    (folder / "lost.ckpt").symlink_to("epoch-4.ckpt")
    (folder / "with space ü.txt").write_text("text")
    (folder / "empty").touch()
    with open(os.fsencode(folder) + b"/bad\xff.txt", "wb") as file:  # noqa: PTH123
        file.write(b"no UTF-8")
    return 1


def reads_a_file_beside_it(config: dict[str, Any]) -> str:
    """Read a data file that isn't sent along."""
    return (Path(__file__).parent / "no_such_data.json").read_text()
