"""What a running experiment can use: `current_run()`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_experiments.errors import Error
from ml_experiments.experiment.checkpoints import Checkpoint, latest_checkpoint, save_checkpoint
from ml_experiments.serialization.plain_values import to_python_scalar


@dataclass(frozen=True)
class RunContext:
    """The run that an experiment is part of: its folders, its seed, and where to report.

    Attributes:
        run_id: The id of the run.
        seed: The run's seed; random, numpy and torch are already seeded with it.
        rank: Which of the processes of a launcher this is, from 0; 0 without a launcher.
        local_rank: Which of those on this machine it is.
        world_size: How many processes there are; 1 without a launcher.
    """

    run_id: str
    _output_dir: Path
    _checkpoint_dir: Path
    seed: int
    _log: Callable[[Mapping[str, Any], int | None], None]
    _progress: Callable[[float, float | None, str], None]
    _on_checkpoint: Callable[[], None] = lambda: None
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    _resumes_from: Checkpoint | None = None  # of ranks other than 0

    @property
    def output_dir(self) -> Path:
        """The folder for files that the run leaves, its artifacts; it is made on first use.

        Example:
            ```python
            (current_run().output_dir / "samples.txt").write_text("seven")
            ```
        """
        self._output_dir.mkdir(exist_ok=True)
        return self._output_dir

    @property
    def checkpoint_dir(self) -> Path:
        """The folder for state from which the same run resumes; it is made on first use.

        A run may be killed while it writes: rename a whole file into its place, or let
        `save_checkpoint()` do so.

        Example:
            ```python
            state = current_run().checkpoint_dir / "step.txt"
            step = int(state.read_text()) if state.exists() else 0
            new = state.with_suffix(".new")
            new.write_text(str(step + 1))
            new.replace(state)
            ```
        """
        self._checkpoint_dir.mkdir(exist_ok=True)
        return self._checkpoint_dir

    @property
    def device(self) -> str:
        """The best device that this process may use, as torch names it: `cuda`, `mps` or `cpu`.

        Where a launcher has started several processes, each has its own, such as `cuda:1`.

        Example:
            ```python
            import torch

            batch = torch.zeros(8, device=current_run().device)
            ```
        """
        import torch

        if torch.cuda.is_available():
            return f"cuda:{self.local_rank}" if self.world_size > 1 else "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"

    def log(self, metrics: Mapping[str, Any], *, step: int | None = None) -> None:
        """Record metrics, for a step if one is given; numpy's and torch's integers are steps too.

        Example:
            ```python
            for step in range(3):
                current_run().log({"loss": 1 / (step + 1)}, step=step)
            ```

        Raises:
            UnportableResultError: If a value can't be represented; it names the metric.
            TypeError: If the step is not a whole number.
        """
        self._log(metrics, _whole_number(step))

    def save_checkpoint(
        self,
        state: Any,
        *,
        step: int | None = None,
        keep: int = 2,
        format: Literal["torch", "safetensors", "json"] | None = None,  # noqa: A002
    ) -> Path:
        """Save a state from which this run can resume; return the folder of the checkpoint.

        It is written aside, synced and renamed, so a kill or a full disk leaves the checkpoints
        before it as they were. The random number generators of Python, numpy and torch are saved
        with it. On Modal, checkpoints are stored at once, but at most every minute.

        Of several ranks, only rank 0 writes. In the others nothing is saved, and the folder of all
        checkpoints is returned.

        Example:
            ```python
            run = current_run()
            checkpoint = run.latest_checkpoint()
            state = checkpoint.load() if checkpoint else {"step": 0}
            for step in range(state["step"], 3):
                run.save_checkpoint({"step": step + 1}, step=step)
            ```

        Args:
            state: Plain values and tensors, such as `{"model": model.state_dict()}`; a file or
                folder, which is copied; or a function that writes files into the folder it gets.
            step: What `Checkpoint.step` will be.
            keep: How many checkpoints are kept, this one included. While it is written, the disk
                needs room for one more.
            format: How a state is stored: by default with torch where it holds tensors, else as
                JSON. `safetensors` takes a dict of tensors.

        Raises:
            CheckpointError: If it could not be loaded again, as with objects that would have to
                be unpickled.
            OSError: If it can't be written.
        """
        number = _whole_number(step)
        if self.rank:
            return self.checkpoint_dir
        saved = save_checkpoint(self.checkpoint_dir, state, step=number, keep=keep, format=format)
        self._on_checkpoint()
        return saved

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the newest checkpoint of this run that is whole; None if there is none.

        Each file is compared with the hash that was written with it. A damaged checkpoint is
        removed, with a warning, and the one before it is returned.

        Of several ranks, those other than 0 get the one that was there when the run began: rank 0
        may have saved another one before they ask.

        Example:
            ```python
            checkpoint = current_run().latest_checkpoint()
            state = checkpoint.load() if checkpoint else {"step": 0}
            ```
        """
        if self.rank:
            return self._resumes_from
        return latest_checkpoint(self._checkpoint_dir)

    def progress(self, done: float, total: float | None = None, *, text: str = "") -> None:
        """Report how much of the run is done; it is shown live and not recorded.

        Example:
            ```python
            for epoch in range(3):
                current_run().progress(epoch, 3, text=f"epoch {epoch}")
            ```
        """
        self._progress(float(done), None if total is None else float(total), str(text))


def _whole_number(step: Any) -> int | None:
    number = to_python_scalar(step)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not (number is None or isinstance(number, int)):
        raise TypeError(f"step must be a whole number, not {step!r:.100}")
    return number


_current: RunContext | None = None


def current_run() -> RunContext:
    """Return the run that this process executes.

    Example:
        ```python
        from ml_experiments import current_run, run_experiment

        def train(steps=3):
            run = current_run()
            for step in range(steps):
                run.log({"loss": 1 / (step + 1)}, step=step)
            (run.output_dir / "notes.txt").write_text(f"seed {run.seed}")
            return {"loss": 1 / steps}

        if __name__ == "__main__":
            print(run_experiment(train, {"steps": 4}).results)
        ```

    Raises:
        Error: If no run is executing in this process.
    """
    if _current is None:
        raise Error(
            "current_run() has a value only while an experiment runs; start one with "
            "run_experiment(...) or `ml-experiments run`"
        )
    return _current


def set_current_run(context: RunContext | None) -> None:
    """Set the run that this process executes; only `execution` calls this."""
    global _current
    _current = context
