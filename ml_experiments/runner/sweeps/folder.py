"""The folder of a sweep: what was asked for, and who runs it.

runs/sweeps/<sweep_id>/
  sweep.json    the request, without secrets
  study.log     Optuna's journal, where a sampler suggests the points
  reused.jsonl  the points for which earlier runs were taken, once there is one
  stopped.txt   why no more points were started, if so
  log.txt       what the process of a detached sweep has printed
  remote.json   the call on Modal that controls a detached sweep
  spent.json    what that has spent, once it has ended
  .lock         locked while a process runs the sweep

Which points have run, and what came of them, is in their run folders, which are tagged with the
sweep; nothing here repeats it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_experiments.errors import Error, RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import Budget
from ml_experiments.runner.group_folders import find_group, make_group_folder
from ml_experiments.runner.sweeps.search_space.space import Space
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.lock import locked_file
from ml_experiments.runs.records import parse_record, read_json_object
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.result import RunResult
from ml_experiments.serialization.files import write_json_atomically

SWEEP_TAG, POINT_TAG, TRIAL_TAG = "sweep", "point", "trial"
_USER_DATA = ("fixed", "axes.name", "axes.values", "name", "options.*", "backend_options.*")


@dataclass(frozen=True)
class SweepSpec:
    """What was asked of a sweep.

    Attributes:
        sweep_id: Unique, sorts by time of creation.
        experiment: The class path that holds in every folder.
        axes: The search space; see `Space.to_dict`.
        fixed: Overrides that all points share, as those of a config file.
        options: Options of the runs.
        seed: Of the runs that get no other, and of the sampler.
        is_seed_drawn: Whether nobody has asked for it.
        parallel: How many points run at a time.
        sampler: `grid`, or a sampler of Optuna's.
        trials: How many points a sampler suggests.
        metric: What is compared, such as `results.accuracy`.
        direction: `maximize` or `minimize`.
        batch: How many points are suggested together.
        stops_at_failure: Whether the first failed point ends the sweep.
        working_dir: The folder that it was started in.
        pruner: The pruner of Optuna's that ends poor points early.
        pruner_metric: The logged metric that it compares.
        min_steps: How many steps each point gets before it may be ended.
        max_cost: The most that all points may cost, in US dollars.
        allowed_usd: What a controller on Modal may spend on them, where there is a cap: it was
            reserved on the machine that has started it. Not recorded.
    """

    sweep_id: str
    experiment: str
    created_at: str
    axes: list[dict[str, Any]]
    fixed: tuple[str, ...] = ()
    backend: str = "local"
    backend_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    parallel: int = 1
    sampler: str = "grid"
    trials: int | None = None
    metric: str | None = None
    direction: str | None = None
    batch: int | None = None
    stops_at_failure: bool = False
    name: str | None = None
    working_dir: str = "."
    pruner: str | None = None
    pruner_metric: str | None = None
    min_steps: int = 1
    max_cost: float | None = None
    is_seed_drawn: bool = False
    allowed_usd: float | None = None

    @property
    def space(self) -> Space:
        """The search space."""
        return Space.from_dict(self.axes)

    @property
    def budget(self) -> Budget:
        """What its points share; each of those that run at a time may have an equal part of it."""
        cap = self.max_cost if self.allowed_usd is None else self.allowed_usd
        return Budget(f"sweep:{self.sweep_id}", cap, None if cap is None else cap / self.parallel)

    @property
    def handed_over(self) -> int:
        """The most points that are handed over and have not ended.

        On Modal, points of a grid wait there for those that run: the containers, never more than
        `parallel`, are not paid for while they wait for this process. A cap has to know what the
        points before have cost, and a pruner what they have logged.
        """
        is_grid_there = self.backend == "modal" and self.sampler == "grid"
        is_alone = not self.stops_at_failure and self.pruner is None and not self.budget.is_capped
        return 2 * self.parallel if is_grid_there and is_alone else self.parallel

    @property
    def is_halved_by_money(self) -> bool:
        """Whether the better points get more of the cap, round by round."""
        return self.pruner == "halving" and self.max_cost is not None and self.backend == "modal"

    @property
    def has_optunas_pruner(self) -> bool:
        """Whether Optuna compares the points while they run."""
        return self.pruner is not None and not self.is_halved_by_money

    @property
    def total(self) -> int | None:
        """How many points there are to run."""
        return self.space.count if self.sampler == "grid" else self.trials


@dataclass(frozen=True)
class RecordedRun:
    """The run of a point.

    Attributes:
        folder: The run folder.
        trial: The number of the trial; 0 in a grid.
        overrides: What the point sets in the config.
        is_reused: Whether it is an earlier run, which was taken for the point.
    """

    folder: RunFolder
    trial: int
    overrides: tuple[str, ...]
    is_reused: bool = False

    def outcome(self) -> RunResult:
        """Return what came of the run, or where it stands."""
        return dataclasses.replace(self.folder.outcome(), is_reused=self.is_reused)


@dataclass(frozen=True)
class SweepFolder:
    """Reads and writes the folder of one sweep."""

    path: Path

    @classmethod
    def create(cls, runs_dir: Path, spec: SweepSpec, redactor: Redactor) -> SweepFolder:
        """Make the folder of a new sweep; it appears with its spec, or not at all.

        Raises:
            RunFolderError: If it can't be written.
        """
        folder = cls(_sweeps_dir(runs_dir) / spec.sweep_id)
        make_group_folder(folder.path, lambda draft: cls(draft).write_spec(spec, redactor), "sweep")
        return folder

    @property
    def runs_dir(self) -> Path:
        """Where the run folders of its points are."""
        return self.path.parent.parent

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.path / "study.log"

    def read_spec(self) -> SweepSpec:
        """Return what was asked for.

        Raises:
            RunFolderError: If sweep.json is missing or not readable.
        """
        file = self.path / "sweep.json"
        try:
            spec = parse_record(SweepSpec, read_json_object(file))
            if spec.total is None:
                raise ValueError("it has no end of points")
        except ValueError as e:
            raise RunFolderError(f"{file} is not a sweep: {e}") from e
        return spec

    def write_spec(self, spec: SweepSpec, redactor: Redactor) -> None:
        """Replace what was asked for."""
        recorded = dataclasses.replace(spec, allowed_usd=None)
        record = redactor.redact_record(dataclasses.asdict(recorded), _USER_DATA)
        write_json_atomically(self.path / "sweep.json", record)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process run the sweep; the system releases the lock when the process dies.

        Raises:
            Error: If another process runs it.
        """
        with locked_file(
            self.path / ".lock", f"sweep {self.path.name} is being run by another process"
        ):
            self.stop_file.unlink(missing_ok=True)
            self._stopped_file.unlink(missing_ok=True)
            yield

    @property
    def is_running(self) -> bool:
        """Whether a process runs the sweep."""
        try:
            with locked_file(self.path / ".lock", ""):
                return False
        except Error:
            return True

    @property
    def stop_file(self) -> Path:
        """Is there when the process that runs the sweep is to stop it."""
        return self.path / ".stop"

    def record_reused(self, key: str, overrides: Sequence[str], run: RunFolder) -> None:
        """Record that an earlier run was taken for a point.

        Args:
            key: The `NextPoint.run_key` of the point.
            overrides: What it sets in the config.
            run: The folder of the earlier run.
        """
        entry = {"key": key, "point": shlex.join(overrides), "run_id": run.path.name}
        with self.reused_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @property
    def reused_file(self) -> Path:
        """The points for which earlier runs were taken, once there is one."""
        return self.path / "reused.jsonl"

    def _reused_runs(self) -> Iterator[tuple[str, RecordedRun]]:
        try:
            lines = self.reused_file.read_text("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            # the last one may be cut short
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                key, run = entry["key"], RunFolder(self.runs_dir / entry["run_id"])
                trial = int(key) if key.isdecimal() else 0
                if run.result_file.exists():  # else it was removed since
                    yield key, RecordedRun(run, trial, tuple(shlex.split(entry["point"])), True)

    @property
    def log_file(self) -> Path:
        """What the process of a detached sweep has printed."""
        return self.path / "log.txt"

    @property
    def remote_file(self) -> Path:
        """Which call on Modal controls the sweep, if one does."""
        return self.path / "remote.json"

    @property
    def _stopped_file(self) -> Path:
        return self.path / "stopped.txt"

    def note_stop(self, why: str) -> None:
        """Keep why no more points were started."""
        with contextlib.suppress(OSError):  # a full disk: the runs are there all the same
            self._stopped_file.write_text(why + "\n", encoding="utf-8")

    def read_stop(self) -> str | None:
        """Return why no more points were started; None if that is not so."""
        try:
            return self._stopped_file.read_text("utf-8", "replace").strip()
        except OSError:
            return None

    def recorded_runs(self) -> dict[str, RecordedRun]:
        """Return the runs of the sweep by `NextPoint.run_key`; of several, the newest."""
        registry = RunRegistry(self.runs_dir)
        rows = registry.rows(run_filter=RunFilter(sweep=self.path.name))
        found = dict(self._reused_runs())
        for row in sorted(rows, key=lambda row: row.run_id):
            if not row.problem:
                folder = RunFolder(self.runs_dir / row.run_id)
                tags = folder.read_spec().tags
                point = tags.get(POINT_TAG)
                if point is not None:
                    trial = tags.get(TRIAL_TAG)
                    overrides = tuple(shlex.split(point))
                    found[trial or point] = RecordedRun(folder, int(trial or 0), overrides)
        return found


def find_sweep(runs_dir: Path, reference: str) -> SweepFolder:
    """Return the sweep of an id, the beginning of one, a name, or `last`.

    Raises:
        RunNotFoundError: If none or several match.
    """
    return find_group(list_sweeps(runs_dir), runs_dir, reference, "sweep", "sweeps")


def list_sweeps(runs_dir: Path) -> list[SweepFolder]:
    """Return all sweeps, the newest first."""
    found = sorted(_sweeps_dir(runs_dir).glob("[!.]*/sweep.json"), reverse=True)
    return [SweepFolder(file.parent) for file in found]


@contextlib.contextmanager
def reserved_name(runs_dir: Path, name: str | None) -> Iterator[None]:
    """Let one process at a time run a sweep of this name.

    Raises:
        Error: If another process runs one.
    """
    if name is None:
        yield
        return
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    folder = _sweeps_dir(runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    message = f"a sweep named {name!r} is running; wait for its end, or give another --name"
    with locked_file(folder / f".name-{digest}", message):
        yield


def _sweeps_dir(runs_dir: Path) -> Path:
    return runs_dir / "sweeps"
