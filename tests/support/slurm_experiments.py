"""Experiments that tests hand to Slurm."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from ml_experiments import Experiment, ExperimentConfig, current_run


class Counts(Experiment):
    """Counts in steps of 50 ms, each with a checkpoint."""

    class Config(ExperimentConfig):
        steps: int = 3
        until: str = ""  # a file that ends it

    def run(self) -> dict[str, Any]:
        run = current_run()
        checkpoint = run.latest_checkpoint()
        first = checkpoint.load()["next"] if checkpoint else 0
        print(f"begins at {first}")
        try:
            for step in range(first, self.config.steps):
                run.save_checkpoint({"next": step + 1}, step=step)
                run.log({"count": step}, step=step)
                run.progress(step + 1, self.config.steps)
                time.sleep(0.05)
                if self.config.until and Path(self.config.until).exists():
                    break
        except KeyboardInterrupt:
            (run.output_dir / "interrupted.txt").touch()
            raise
        return {
            "began_at": first,
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "cpus": os.environ.get("SLURM_CPUS_PER_TASK"),
            "setup": os.environ.get("FROM_SETUP"),
        }


class HasSecret(Experiment):
    class Config(ExperimentConfig):
        token: SecretStr = SecretStr("")

    def run(self) -> None:
        pass
