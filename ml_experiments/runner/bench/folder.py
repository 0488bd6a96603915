"""The folder of a bench: what was asked for.

runs/benches/<bench_id>/
  bench.json    the request, without secrets
  .lock         locked while a process runs the bench

What was measured is in the run folders, which are tagged with the bench; nothing here repeats it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_experiments.errors import RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.group_folders import find_group, make_group_folder
from ml_experiments.runner.sweeps.search_space.space import Space, point_key
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.lock import locked_file
from ml_experiments.runs.records import parse_record, read_json_object
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.serialization.files import write_json_atomically

BENCH_TAG, CASE_TAG, REPEAT_TAG = "bench", "case", "repeat"
WARM_UP = "warm-up"  # the tag `repeat` of the run that warms up
_USER_DATA = ("fixed", "axes.name", "axes.values", "name", "tags.*", "backend_options.*")
_SPEC_FILE = "bench.json"


@dataclass(frozen=True)
class Case:
    """What is measured: one GPU type with one set of values.

    Attributes:
        gpu: The GPU type; None for this machine.
        overrides: The values that are varied, as on the command line.
    """

    gpu: str | None
    overrides: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What its runs are recognized by."""
        return " ".join(filter(None, (self.gpu or "here", point_key(self.overrides))))


@dataclass(frozen=True)
class BenchSpec:
    """What was asked of a bench.

    Attributes:
        bench_id: Unique, sorts by time of creation.
        experiment: The class path that holds in every folder.
        gpus: The GPU types; none for this machine.
        fixed: Overrides that all runs share.
        axes: The values to vary; see `Space.to_dict`.
        repeat: How many measured runs there are of each case.
        per: What one run puts out; None for the run itself.
        latency: The logged metric whose percentiles are shown; None for the seconds of `run()`.
        launch: What starts the processes of a run; None where it is one.
        nproc_per_node: How many, if that was given.
        nodes: On how many machines at once.
        max_cost: The most that all runs may cost, in US dollars.
        working_dir: The folder that it was started in.
    """

    bench_id: str
    experiment: str
    created_at: str
    gpus: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    axes: list[dict[str, Any]] = field(default_factory=list)
    backend: str = "local"
    backend_options: dict[str, Any] = field(default_factory=dict)
    repeat: int = 3
    per: str | None = None
    latency: str | None = None
    launch: str | None = None
    nproc_per_node: int | None = None
    nodes: int = 1
    timeout_s: float | None = None
    seed: int = 0
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    max_cost: float | None = None
    working_dir: str = "."

    @property
    def scope(self) -> str:
        """What its runs have in common in the ledger."""
        return f"bench:{self.bench_id}"

    @property
    def varied(self) -> tuple[str, ...]:
        """The fields that are varied."""
        return tuple(axis["name"] for axis in self.axes)

    @property
    def cases(self) -> tuple[Case, ...]:
        """What is measured, by GPU type."""
        points = list(Space.from_dict(self.axes).points()) if self.axes else [()]
        return tuple(Case(gpu, point) for gpu in self.gpus or (None,) for point in points)


@dataclass(frozen=True)
class BenchFolder:
    """Reads and writes the folder of one bench."""

    path: Path

    @classmethod
    def create(cls, runs_dir: Path, spec: BenchSpec, redactor: Redactor) -> BenchFolder:
        """Make the folder of a new bench; it appears with its spec, or not at all.

        Raises:
            RunFolderError: If it can't be written.
        """
        folder = cls(_benches_dir(runs_dir) / spec.bench_id)
        make_group_folder(folder.path, lambda draft: cls(draft).write_spec(spec, redactor), "bench")
        return folder

    def write_spec(self, spec: BenchSpec, redactor: Redactor) -> None:
        """Replace what was asked for."""
        record = redactor.redact_record(dataclasses.asdict(spec), _USER_DATA)
        write_json_atomically(self.path / _SPEC_FILE, record)

    @property
    def runs_dir(self) -> Path:
        """Where the run folders of its cases are."""
        return self.path.parent.parent

    def read_spec(self) -> BenchSpec:
        """Return what was asked for.

        Raises:
            RunFolderError: If bench.json is missing or not readable.
        """
        file = self.path / _SPEC_FILE
        try:
            spec = parse_record(BenchSpec, read_json_object(file))
            if spec.axes:
                Space.from_dict(spec.axes)
        except ValueError as e:
            raise RunFolderError(f"{file} is not a bench: {e}") from e
        return spec

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let one process run the bench.

        Raises:
            Error: If another process runs it.
        """
        message = f"bench {self.path.name} is being run by another process"
        with locked_file(self.path / ".lock", message):
            yield

    def recorded_runs(self) -> dict[str, list[RunFolder]]:
        """Return the runs of each case, the oldest first."""
        rows = RunRegistry(self.runs_dir).rows(
            run_filter=RunFilter(tags={BENCH_TAG: self.path.name})
        )
        found: dict[str, list[RunFolder]] = {}
        for row in sorted(rows, key=lambda row: row.run_id):
            if not row.problem:
                folder = RunFolder(self.runs_dir / row.run_id)
                case = folder.read_spec().tags.get(CASE_TAG, "")
                found.setdefault(case, []).append(folder)
        return found


def find_bench(runs_dir: Path, reference: str) -> BenchFolder:
    """Return the bench of an id, the beginning of one, a name, or `last`.

    Raises:
        RunNotFoundError: If none or several match.
    """
    files = sorted(_benches_dir(runs_dir).glob(f"[!.]*/{_SPEC_FILE}"), reverse=True)
    benches = [BenchFolder(file.parent) for file in files]
    return find_group(benches, runs_dir, reference, "bench", "benches")


def _benches_dir(runs_dir: Path) -> Path:
    return runs_dir / "benches"
