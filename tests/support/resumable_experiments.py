"""Experiments that are killed and resumed, well or badly."""

from __future__ import annotations

import hashlib
import random
import time
from typing import Any, Literal

from ml_experiments import Experiment, ExperimentConfig, current_run


class Steps(Experiment):
    """Multiplies by random numbers; `way` says what is wrong with how it resumes."""

    class Config(ExperimentConfig):
        steps: int = 20
        wait_s: float = 0.02
        way: Literal["right", "forgets", "none", "fails", "refuses", "clock"] = "right"

    def run(self) -> dict[str, Any]:
        run, way = current_run(), self.config.way
        value, start = 1.0, 0
        checkpoint = run.latest_checkpoint()
        if checkpoint is not None and checkpoint.step is not None:
            if way == "refuses":
                raise ValueError("can't be resumed")
            value, start = checkpoint.load()["value"], checkpoint.step + 1
            if way == "forgets":
                value = 1.0
        for step in range(start, self.config.steps):
            if way == "fails" and step == 3:
                raise ValueError("a bad batch")
            value *= random.random()
            run.log({"value": value}, step=step)
            time.sleep(self.config.wait_s)
            if way != "none":
                run.save_checkpoint({"value": value}, step=step)
        return {"value": value, "ended": time.time() if way == "clock" else 0.0}


class TrainTorch(Experiment):
    """Trains a small network with dropout, Adam and shuffled data."""

    preload = ("torch",)

    def run(self) -> dict[str, Any]:
        import torch

        run = current_run()
        layers = torch.nn
        model = layers.Sequential(layers.Linear(6, 16), layers.Dropout(0.3), layers.Linear(16, 1))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        data = torch.rand(64, 6)
        start = 0
        checkpoint = run.latest_checkpoint()
        if checkpoint is not None and checkpoint.step is not None:
            state = checkpoint.load()
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            data, start = state["data"], checkpoint.step + 1
        for step in range(start, 60):
            batch = data[torch.randperm(64)[:16]]
            loss = ((model(batch) - batch.sum(1, keepdim=True)) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log({"loss": loss.item()}, step=step)
            time.sleep(0.01)
            if step % 4 == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                run.save_checkpoint({**state, "data": data}, step=step)
        weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        return {"weights": hashlib.sha256(weights).hexdigest()}


class SavesAndWaits(Experiment):
    """Saves a checkpoint and waits; where it finds one, it ends with the step of that."""

    def run(self) -> dict[str, Any]:
        run = current_run()
        checkpoint = run.latest_checkpoint()
        if checkpoint is not None:
            return {"found": checkpoint.step, **checkpoint.load()}
        run.save_checkpoint({"value": 3}, step=5)
        run.log({"saved": 1})
        time.sleep(120)
        return {}
