"""One network in training: steps, checkpoints, and exact resumption from them."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ml_experiments.errors import ConfigError
from ml_experiments.experiment.context import current_run
from ml_experiments.serialization.files import open_atomically

Losses = dict[str, torch.Tensor]


@dataclass(frozen=True)
class StagePlan:
    """How a network is trained.

    Attributes:
        name: Names the checkpoint and the metrics.
        inputs: Everything that the trained weights depend on; a checkpoint of other inputs is
            refused.
    """

    name: str
    steps: int
    learning_rate: float
    checkpoint_every_steps: int
    log_every_steps: int
    inputs: dict[str, Any]


class TrainingStage:
    """A network with all the state that its training has.

    Attributes:
        network: What is trained.
        average: The network with its weights averaged over the last steps; None without decay.
        generator: The only source of randomness in a step.
        seconds: Time spent in steps, over every attempt.
    """

    def __init__(
        self,
        plan: StagePlan,
        network: torch.nn.Module,
        *,
        average_decay: float | None = None,
        gradient_norm: float | None = None,
    ) -> None:
        self.plan = plan
        self.network = network
        self.gradient_norm = gradient_norm
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=plan.learning_rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=plan.learning_rate, total_steps=plan.steps
        )
        self.average: torch.optim.swa_utils.AveragedModel | None = None
        if average_decay is not None:
            self.average = torch.optim.swa_utils.AveragedModel(
                network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(average_decay)
            )
        self.generator = torch.Generator().manual_seed(derive_seed(plan.inputs["seed"], plan.name))
        self.done = 0
        self.seconds = 0.0

    def train(self, compute_losses: Callable[[torch.Generator], Losses]) -> torch.nn.Module:
        """Train to the last step, from the run's checkpoint if there is one.

        Args:
            compute_losses: Returns `loss`, which is minimised, and others that are only logged.

        Returns:
            The trained network, averaged if the stage averages.

        Raises:
            ConfigError: If the checkpoint is that of another training.
            FloatingPointError: If the loss is no longer a finite number.
        """
        run = current_run()
        checkpoint = run.checkpoint_dir / f"{self.plan.name}.pt"
        if checkpoint.exists():
            self._load(checkpoint)
        while self.done < self.plan.steps:
            started = time.perf_counter()
            losses = self._step(compute_losses)
            self.seconds += time.perf_counter() - started
            last = self.done == self.plan.steps
            if last or self.done % self.plan.log_every_steps == 0:
                self._report(losses)
            if last or self.done % self.plan.checkpoint_every_steps == 0:
                self._save(checkpoint)
            run.progress(self.done, self.plan.steps, text=f"training the {self.plan.name}")
        trained = self.network if self.average is None else self.average.module
        return trained.eval().requires_grad_(False)

    def _report(self, losses: Losses) -> None:
        metrics = {f"{self.plan.name}_{name}": value.item() for name, value in losses.items()}
        current_run().log(metrics, step=self.done)
        if not math.isfinite(losses["loss"]):
            raise FloatingPointError(
                f"the loss of the {self.plan.name} is {losses['loss'].item()} at step {self.done}; "
                f"lower its learning rate, which is {self.plan.learning_rate:g}"
            )

    def _step(self, compute_losses: Callable[[torch.Generator], Losses]) -> Losses:
        losses = compute_losses(self.generator)
        self.optimizer.zero_grad()
        losses["loss"].backward()
        if self.gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_norm)
        self.optimizer.step()
        self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.done += 1
        return {name: value.detach() for name, value in losses.items()}

    def _save(self, checkpoint: Path) -> None:
        state = {
            "inputs": self.plan.inputs,
            "done": self.done,
            "seconds": self.seconds,
            "network": self.network.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
        }
        with open_atomically(checkpoint) as file:
            torch.save(state, file)

    def _load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["inputs"] != self.plan.inputs:
            raise ConfigError(
                f"{checkpoint} was made with {state['inputs']}, but this run has "
                f"{self.plan.inputs}; resume with the same values or start a new run"
            )
        self.done = state["done"]
        self.seconds = state["seconds"]
        self.network.load_state_dict(state["network"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"])


def derive_seed(seed: int, purpose: str) -> int:
    """Return a seed of its own for a purpose, so that no two draw the same numbers."""
    return random.Random(f"{seed}/{purpose}").getrandbits(63)
