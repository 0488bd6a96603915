"""What earlier runs of an experiment on Modal tell of GPU types: seconds, prices, memory."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.backends.modal.billing.cost import choice_that_ran
from ml_experiments.backends.modal.billing.prices import container_usd_per_s
from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, GpuChoice, parse_gpu
from ml_experiments.errors import ConfigError, Error, suggest
from ml_experiments.runner.bench.measuring import outputs_of
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.index.rows import RunRow, flatten
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec

_MAX_RUNS = 500  # on Modal, and as many elsewhere
_MAX_GROUPED = 8  # values of a field; one with more, such as a prompt, tells nothing of a GPU


@dataclass(frozen=True)
class PastRun:
    """A run that has ended.

    Attributes:
        run_id: Its id.
        gpu: The GPU that it had; None for a run on this machine.
        overrides: Its values of the fields in which the runs differ, as `name=value`.
        process: The process that executed it.
        seconds: How long `run()` took; None if it has failed.
        setup_s: Importing and setting up.
        outputs: What it has put out; None if that can't be counted.
        usd_per_s: The price of its container now; None where none is known.
        peak_gpu_memory_bytes: Of one GPU, as torch counts it.
        is_out_of_memory: Whether the GPU's memory was too small.
    """

    run_id: str
    gpu: GpuChoice | None
    overrides: tuple[str, ...]
    process: Any
    seconds: float | None
    setup_s: float
    outputs: float | None
    usd_per_s: float | None
    peak_gpu_memory_bytes: int | None
    is_out_of_memory: bool


@dataclass(frozen=True)
class History:
    """The runs of an experiment, the oldest first.

    Attributes:
        runs: Those that have ended, in success or without enough memory.
        mixed: Fields in which the runs differ so often that all of their values count together.
        uncounted: Why outputs could not be counted, where they could not.
        setups: The first successful run in each process, which has set up for the others; also
            those that do not count otherwise.
        nearest: Where there is no run of the experiment, which one may be meant.
    """

    runs: tuple[PastRun, ...]
    mixed: tuple[str, ...] = ()
    uncounted: str | None = None
    setups: tuple[PastRun, ...] = ()
    nearest: str = ""


def read_history(
    runs_dir: Path, experiment: str, config: Mapping[str, Any], per: str | None
) -> History:
    """Read the runs of an experiment.

    Args:
        runs_dir: Where the run folders are.
        experiment: The class path, as run specs have it.
        config: Values that the config of a run must have to count.
        per: What one run puts out; see `outputs_of`.

    Raises:
        ConfigError: If no run has such a field.
        RunFolderError: If the folder is not readable.
    """
    registry = RunRegistry(runs_dir)
    every = RunFilter(experiment=glob.escape(experiment))
    # those on this machine, of which there may be many more, tell only of memory
    filters = (dataclasses.replace(every, backend="modal"), every)
    found = {row.run_id: row for each in filters for row in registry.rows(_MAX_RUNS, each)}
    rows = sorted(found.values(), key=lambda row: row.run_id, reverse=True)
    # the filter takes the end of a path for the whole
    rows = [row for row in rows if row.experiment == experiment and not row.problem]
    if not rows:
        known = {row.experiment for row in registry.rows(_MAX_RUNS) if row.experiment}
        return History((), nearest=suggest(experiment, sorted(known)))
    wanted = dict(flatten("config", dict(config)))
    _check_fields(wanted, rows)
    rows = [row for row in rows if row.status == "success" or row.error_kind == "cuda_oom"]
    counted = [row for row in rows if all(row.values.get(k) == v for k, v in wanted.items())]
    fields = _differing(row for row in counted if row.backend == "modal")
    grouped = [name for name, values in fields.items() if len(values) <= _MAX_GROUPED]
    runs: list[PastRun] = []
    setups: dict[Any, PastRun] = {}
    uncounted: str | None = None
    for row in reversed(rows):
        run, problem = _read_run(RunFolder(runs_dir / row.run_id), row, grouped, per)
        if run.seconds is not None:
            setups.setdefault(run.process, run)
        if row in counted:
            runs.append(run)
            if run.gpu is not None:
                uncounted = problem or uncounted
    mixed = tuple(name.removeprefix("config.") for name in fields if name not in grouped)
    return History(tuple(runs), mixed, uncounted, tuple(setups.values()))


def _read_run(
    folder: RunFolder, row: RunRow, grouped: Sequence[str], per: str | None
) -> tuple[PastRun, str | None]:
    """Return a run, and why its outputs can't be counted."""
    spec, manifest, result = folder.read_spec(), folder.read_manifest(), folder.outcome()
    outputs: float | None = None
    problem: str | None = None
    if result.status is RunStatus.SUCCESS:
        try:
            outputs = outputs_of(result, spec.config, per)
        except Error as e:
            problem = str(e)
    overrides = tuple(
        f"{name.removeprefix('config.')}={row.values[name]}"
        for name in grouped
        if name in row.values
    )
    if manifest.modal is not None and manifest.modal.nodes:  # others than on one machine
        overrides = (f"nodes={manifest.modal.nodes}", *overrides)
    return _past_run(spec, manifest, result, overrides, outputs), problem


def _check_fields(wanted: Mapping[str, Any], rows: Sequence[RunRow]) -> None:
    known = {name for row in rows for name in row.values if name.startswith("config.")}
    for name in wanted:
        if rows and name not in known:
            fields = [other.removeprefix("config.") for other in sorted(known)]
            given = name.removeprefix("config.")
            raise ConfigError(
                f"no run has the field {given!r} in its config{suggest(given, fields)}; there are "
                f"{', '.join(fields)}"
            )


def _differing(rows: Iterable[RunRow]) -> dict[str, set[Any]]:
    """Return the fields of the configs that have several values, with these."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.values.items():
            if name.startswith("config."):
                values.setdefault(name, set()).add(value)
    return {name: found for name, found in sorted(values.items()) if len(found) > 1}


def _past_run(
    spec: RunSpec,
    manifest: Manifest,
    result: RunResult,
    overrides: tuple[str, ...],
    outputs: float | None,
) -> PastRun:
    devices = [str(gpu.get("name")) for gpu in manifest.environment.get("gpus", ())]
    gpu = None
    if spec.backend == "modal":
        gpu = choice_that_ran(parse_gpu(spec.gpu or DEFAULT_GPU_TYPE), devices)
    timings = result.timings
    return PastRun(
        run_id=result.run_id,
        gpu=gpu,
        overrides=overrides,
        process=manifest.process,
        seconds=timings.get("run_s") if result.status is RunStatus.SUCCESS else None,
        setup_s=timings.get("import_s", 0.0) + timings.get("setup_s", 0.0),
        outputs=outputs,
        usd_per_s=_usd_per_s(gpu, manifest),
        peak_gpu_memory_bytes=result.environment.get("peak_gpu_memory_bytes"),
        is_out_of_memory=result.error is not None and result.error.kind is ErrorKind.CUDA_OOM,
    )


def _usd_per_s(gpu: GpuChoice | None, manifest: Manifest) -> float | None:
    place = manifest.modal
    if gpu is None or place is None or not place.cpu_cores or not place.memory_mib:
        return None
    try:
        of_one = container_usd_per_s(gpu, place.cpu_cores[0], place.memory_mib[0] / 1024)
        return of_one * (place.nodes or 1)
    except Error:  # no price is known
        return None
