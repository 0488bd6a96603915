"""Experiments that execute in several ranks."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import Any

from ml_experiments import Experiment, ExperimentConfig, SoftTimeout, current_run

SAMPLES, BATCH, STEPS = 64, 16, 6


class Regression(Experiment):
    """A small training whose batches are divided among the ranks, if there are several."""

    preload = ("torch",)

    class Config(ExperimentConfig):
        steps: int = STEPS

    def run(self) -> dict[str, Any]:
        import torch
        from torch import distributed

        run = current_run()
        torch.set_default_dtype(torch.float64)
        model: Any = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )
        inputs = torch.randn(SAMPLES, 4)
        targets = inputs.sum(dim=1, keepdim=True)
        parallel = model
        if run.world_size > 1:
            distributed.init_process_group("gloo")
            parallel = torch.nn.parallel.DistributedDataParallel(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for step in range(self.config.steps):
            first = step * BATCH % SAMPLES
            batch = slice(first + run.rank, first + BATCH, run.world_size)
            loss = ((parallel(inputs[batch]) - targets[batch]) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.log({"step_of_rank": run.rank}, step=step)
            run.progress(step + 1, self.config.steps)
        run.save_checkpoint({"rank": run.rank})
        print(f"trained with seed {run.seed}, drew {random.random()}")
        if run.world_size > 1:
            distributed.destroy_process_group()
        return {
            "weights": [p.flatten().tolist() for p in model.parameters()],
            "rank": run.rank,
            "world_size": run.world_size,
        }


def uses_accelerate() -> dict[str, Any]:
    """Sum the ranks, as Accelerate counts them."""
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator()
    mine = torch.tensor(accelerator.process_index + 1, device=accelerator.device)
    total = accelerator.reduce(mine, "sum").item()
    accelerator.end_training()
    return {
        "total": total,
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
    }


def ends(how: str) -> Any:
    """End in the way that its argument names; rank 0 waits for the others."""
    run = current_run()
    if run.rank == 1 and how == "is_killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if run.rank == 1 and how == "exits":
        os._exit(7)
    try:
        (run.output_dir / f"pid{run.rank}.txt").write_text(str(os.getpid()))
        time.sleep(60)
    except (KeyboardInterrupt, SoftTimeout) as e:
        if run.rank == 0:
            time.sleep(0.3)  # to save takes a while
        (run.output_dir / f"saved{run.rank}.txt").write_text(type(e).__name__)
        raise
    return "slept"


def goes_on(fails: bool = False) -> None:
    """Save a checkpoint; tell what was there at the beginning, which every rank has to agree on."""
    run = current_run()
    been = run.checkpoint_dir / "been"
    if run.rank == 0:
        checkpoint = run.latest_checkpoint()
        run.save_checkpoint([0 if checkpoint is None else checkpoint.load()[0] + 1], step=1)
        been.touch()
    else:
        while not been.exists():  # so that there is a newer one now
            time.sleep(0.01)
        checkpoint = run.latest_checkpoint()
        found = None if checkpoint is None else checkpoint.load()
        assert run.save_checkpoint([100]) == run.checkpoint_dir
        (run.output_dir / "found.txt").write_text(str(found))
    print(f"here is {run.rank} of {run.world_size}")
    sys.stdout.write("without a newline")
    if fails and run.rank == 1:
        raise ArithmeticError("a bad batch")


def on_nodes(how: str = "waits") -> Any:
    """Wait for an end from outside, unless a rank ends it; a second attempt returns at once."""
    run = current_run()
    checkpoint = run.latest_checkpoint()
    if checkpoint is not None:
        return checkpoint.load()
    if how.startswith("returns"):
        return {"world_size": run.world_size}
    if how == "saves":
        run.save_checkpoint(["saved by", run.rank])
    if how == "fails":
        from torch import distributed

        distributed.init_process_group("gloo")
        if run.rank == 1:
            raise ArithmeticError("a bad batch")
        distributed.barrier()  # which fails, too, as the other one is gone
    try:
        print(f"waits as {os.getpid()} in {os.environ.get('MODAL_TASK_ID')}")
        time.sleep(120)
    except (KeyboardInterrupt, SoftTimeout) as e:
        print(f"got {type(e).__name__}")
        (run.output_dir / f"saved{run.rank}.txt").write_text(type(e).__name__)
        if how == "is stubborn" and run.rank == 1:
            time.sleep(120)
        raise
    return "slept"
