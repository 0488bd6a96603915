"""Whether an experiment that is killed and resumed comes to what it would have come to."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_experiments.backends.local.backend import LocalBackend
from ml_experiments.errors import Error, RunFolderError
from ml_experiments.execution.observer import Observer
from ml_experiments.experiment.checkpoints import latest_checkpoint
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runner.resume import resume_run
from ml_experiments.runner.run import submit_run, wait_for
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.reports.values import (
    ValueDifference,
    check_names,
    compare_metrics,
    compare_results,
)
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec

MIN_RUN_S = 0.2
_TICK_S = 0.005
# the first and the last moments of a run are its import and its end, where it has nothing to lose
_EARLIEST, _LATEST = 0.1, 0.9


@dataclass(frozen=True)
class ResumeCheck:
    """What came of a check.

    Attributes:
        uninterrupted: The result of the run that was left alone.
        resumed: The result of the one that was killed; None if the first did not succeed.
        kill_seed: What the moments were drawn with.
        kill_points: When it was to be killed, in parts of the time of the whole run.
        kills: How often it was killed; it may have ended before the last ones.
        compared: How many values were compared.
        differences: What differs, the earliest step first.
        is_deterministic: Whether two runs that are left alone come to the same; None if that was
            not tried, for nothing differs.
    """

    uninterrupted: RunResult
    resumed: RunResult | None = None
    kill_seed: int = 0
    kill_points: tuple[float, ...] = ()
    kills: int = 0
    compared: int = 0
    differences: tuple[ValueDifference, ...] = ()
    is_deterministic: bool | None = None

    @property
    def is_passed(self) -> bool:
        """Whether the run that was killed came to the same."""
        return (
            self.resumed is not None
            and self.resumed.status is RunStatus.SUCCESS
            and not self.differences
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON."""
        return {
            "passed": self.is_passed,
            "uninterrupted": self.uninterrupted.to_dict(),
            "resumed": self.resumed.to_dict() if self.resumed else None,
            "kill_seed": self.kill_seed,
            "kill_points": list(self.kill_points),
            "kills": self.kills,
            "compared": self.compared,
            "differences": [dataclasses.asdict(one) for one in self.differences],
            "is_deterministic": self.is_deterministic,
        }


@dataclass
class _Attempt(Observer):
    """Follows one attempt at a run: when it started, and the last step that it has logged."""

    show: Callable[[str], None]
    label: str
    step: int | None = None
    logged: int = 0
    has_started: threading.Event = field(default_factory=threading.Event)

    def started(self, spec: RunSpec) -> None:  # noqa: ARG002 - the observer's signature
        self.has_started.set()

    def metrics(self, spec: RunSpec, metrics: Mapping[str, Any], step: int | None) -> None:  # noqa: ARG002
        self.step, self.logged = step, self.logged + 1
        where = f"step {step}" if step is not None else f"{self.logged} metrics logged"
        self.show(f"{self.label}: {where}")


def check_resume(
    experiment: str,
    config: Mapping[str, Any],
    *,
    kills: int = 5,
    seed: int | None = None,
    kill_seed: int | None = None,
    tolerance: float = 0.0,
    ignore: Collection[str] = (),
    runs_dir: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    show: Callable[[str], None] = lambda _: None,
) -> ResumeCheck:
    """Run an experiment on this machine uninterrupted, then killed and resumed, and compare.

    Args:
        experiment: Its import path.
        config: Its config.
        kills: How often its process is killed, with SIGKILL, at random moments.
        seed: The seed of both runs; drawn when not given.
        kill_seed: What the moments are drawn with; drawn when not given.
        tolerance: By which part two numbers may differ; exactly equal by default.
        ignore: Names of metrics and results that are not compared, such as measured times.
        runs_dir: Where the run folders go.
        say: Receives a line after each step of the check.
        show: Receives what goes on now, often.

    Raises:
        Error: If the check can't be made: the experiment saves no checkpoints, it ends before it
            could be killed, or it has nothing that is called like one of `ignore`.
    """
    if kill_seed is None:
        kill_seed = random.SystemRandom().randrange(10_000)
    with LocalBackend() as backend:
        prepared = prepare_run(experiment, config, backend=backend, seed=seed)
        check = _Check(prepared, backend, runs_dir, say, show)
        whole = check.run_uninterrupted("uninterrupted")
        if whole.status is not RunStatus.SUCCESS:
            return ResumeCheck(whole, kill_seed=kill_seed)
        check_names(whole, ignore)
        check.make_sure_it_can_be_killed(whole)
        drawn = random.Random(kill_seed)
        points = tuple(sorted(drawn.uniform(_EARLIEST, _LATEST) for _ in range(kills)))
        say(
            f"kill points (seed {kill_seed}): "
            + ", ".join(f"{100 * point:.0f} %" for point in points)
        )
        resumed, count = check.run_with_kills(whole, points)
        outcome = ResumeCheck(whole, resumed, kill_seed, points, count)
        if resumed.status is not RunStatus.SUCCESS:
            return outcome
        if count == 0:
            raise Error(
                f"the run ended before its first kill, at {100 * points[0]:.0f} % of its time; "
                "give it more steps, or try another --kill-seed"
            )
        compared, differences = compare(whole, resumed, tolerance, ignore)
        is_deterministic = None
        if differences:
            control = check.run_uninterrupted("uninterrupted, again")
            is_deterministic = (
                control.status is RunStatus.SUCCESS
                and not compare(whole, control, tolerance, ignore)[1]
            )
        return dataclasses.replace(
            outcome,
            compared=compared,
            differences=tuple(differences),
            is_deterministic=is_deterministic,
        )


def compare(
    first: RunResult, second: RunResult, tolerance: float, ignore: Collection[str]
) -> tuple[int, list[ValueDifference]]:
    """Return how many metrics and results of two runs were compared, and which differ."""
    of_metrics, metrics = compare_metrics(first, second, tolerance, ignore)
    of_results, results = compare_results(first, second, tolerance, ignore)
    return of_metrics + of_results, metrics + results


class _Check:
    def __init__(
        self,
        prepared: PreparedRun,
        backend: LocalBackend,
        runs_dir: Path | None,
        say: Callable[[str], None],
        show: Callable[[str], None],
    ) -> None:
        self._prepared, self._backend, self._runs_dir = prepared, backend, runs_dir
        self._say, self._show = say, show

    def run_uninterrupted(self, name: str) -> RunResult:
        observer = _Attempt(self._show, name)
        handle = submit_run(
            self._named(name), backend=self._backend, runs_dir=self._runs_dir, observer=observer
        )
        result = wait_for(handle)
        seconds = result.timings.get("total_s", 0.0)
        self._say(f"{name}: {result.status} after {seconds:.2f} s (run {result.run_id})")
        return result

    def _named(self, name: str) -> PreparedRun:
        """Return the run with an id and a name of its own."""
        spec = self._prepared.spec
        again = prepare_run(
            spec.experiment,
            spec.config,
            backend=self._backend,
            seed=spec.seed,
            name=f"check-resume: {name}",
        )
        # both import the experiment from where it was found for the first
        spec = dataclasses.replace(again.spec, import_paths=spec.import_paths)
        return dataclasses.replace(again, spec=spec, setup_key=None)

    def make_sure_it_can_be_killed(self, whole: RunResult) -> None:
        assert whole.run_dir is not None
        folder = RunFolder(whole.run_dir)
        has_own = folder.checkpoint_dir.is_dir() and any(folder.checkpoint_dir.iterdir())
        if latest_checkpoint(folder.checkpoint_dir) is None and not has_own:
            raise Error(
                f"{whole.experiment_class} has saved no checkpoint, so a resumed run starts from "
                "the beginning; save one with current_run().save_checkpoint(state, step=step)"
            )
        run_s = whole.timings.get("run_s", 0.0)
        if run_s < MIN_RUN_S:
            raise Error(
                f"run() took {run_s:.2f} s, too short to be killed at a random moment; give it "
                f"more steps, for at least {MIN_RUN_S:g} s"
            )

    def run_with_kills(self, whole: RunResult, points: tuple[float, ...]) -> tuple[RunResult, int]:
        """Run it again, killed at points of its time; return the result and the count of kills."""
        timings = whole.timings
        starts_s = timings.get("import_s", 0.0) + timings.get("setup_s", 0.0)
        kills, previous = 0, 0.0
        observer = _Attempt(self._show, "attempt 1")
        handle = submit_run(
            self._named("killed and resumed"),
            backend=self._backend,
            runs_dir=self._runs_dir,
            observer=observer,
        )
        for number, point in enumerate(points, 1):
            due_s = starts_s + (point - previous) * timings["run_s"]
            was_killed = _kill_after(due_s, handle.folder, observer, handle.future)
            result = wait_for(handle)
            if not was_killed or result.status is RunStatus.SUCCESS:
                break
            kills, previous = kills + 1, point
            self._say(f"attempt {number}: killed after {due_s:.2f} s{_at(observer)}")
            found = latest_checkpoint(handle.folder.checkpoint_dir)
            step = f" of step {found.step}" if found and found.step is not None else ""
            self._show(f"attempt {number + 1}: resuming from {'the' if found else 'no'} checkpoint")
            observer = _Attempt(self._show, f"attempt {number + 1}")
            handle = resume_run(handle.folder, backend=self._backend, observer=observer)
            start = f"from the checkpoint{step}" if found else "from the beginning"
            self._say(f"attempt {number + 1}: resumed {start}")
        result = wait_for(handle)
        self._say(f"attempt {kills + 1}: {result.status}{_at(observer)} (run {result.run_id})")
        return result, kills


def _at(observer: _Attempt) -> str:
    return "" if observer.step is None else f", at step {observer.step}"


def _kill_after(due_s: float, folder: RunFolder, observer: _Attempt, future: Any) -> bool:
    """Kill the process of a run once it has run for so long; return whether it was killed."""
    due_at = None
    while not future.done():
        if due_at is None and observer.has_started.is_set():
            due_at = time.monotonic() + due_s
        if due_at is not None and time.monotonic() >= due_at:
            process = None
            with contextlib.suppress(RunFolderError):
                process = folder.read_manifest().process
            if process is not None and process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                    return True
        time.sleep(_TICK_S)
    return False
