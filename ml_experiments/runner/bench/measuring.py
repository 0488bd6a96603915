"""What was measured of each case of a bench, from its run folders."""

from __future__ import annotations

import dataclasses
import datetime
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ml_experiments.errors import Error, suggest
from ml_experiments.runner.bench.folder import (
    REPEAT_TAG,
    WARM_UP,
    BenchFolder,
    BenchSpec,
    Case,
)
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus

PERCENTILES = (50, 95, 99)
_OUT_OF_MEMORY = (ErrorKind.CUDA_OOM, ErrorKind.HOST_OOM)


@dataclass(frozen=True)
class BenchRow:
    """What was measured of one GPU type with one set of values.

    Example:
        ```python
        from ml_experiments import bench

        def train(batch_size=1):
            return {"samples": 10 * batch_size}

        if __name__ == "__main__":
            report = bench(train, vary={"batch_size": [1, 4]}, repeat=2, per="results.samples")
            row = min(report.rows, key=lambda row: row.outputs)
            print(row.overrides, row.status, row.runs, row.outputs)
            # ('batch_size=1',) measured 2 10.0
        ```

    Attributes:
        gpu: The GPU type; None for this machine.
        overrides: The values that are varied, as on the command line.
        status: `measured`, `out of memory`, `failed`, or `not measured`.
        problem: What went wrong.
        runs: How many runs count; the one that warmed up does not.
        seconds: How long `run()` took in each of them, sorted.
        outputs: What one run puts out, the median.
        seconds_per_output: The median.
        seconds_per_output_spread: The smallest and the largest.
        usd_per_output: The seconds at the price of the container; None where nothing is paid.
        latency: The percentiles 50, 95 and 99: the smallest value that so many percent of the
            values don't exceed.
        peak_memory_bytes: Of the GPU as torch counts it, or of the process without one.
        peak_memory_of: `gpu` or `process`.
        start_s: From the submission of the first run to its start on Modal: building the image,
            waiting for a GPU, starting the container.
        setup_s: Importing and setting up the experiment in the first run.
        first_run_s: How long `run()` took in the first run.
        device: The GPU's name.
        is_efficient: Whether no other row is both cheaper and faster.
        run_ids: The runs, the one that warmed up first.
    """

    gpu: str | None
    overrides: tuple[str, ...]
    status: str
    problem: str | None = None
    runs: int = 0
    seconds: tuple[float, ...] = ()
    outputs: float | None = None
    seconds_per_output: float | None = None
    seconds_per_output_spread: tuple[float, float] | None = None
    usd_per_output: float | None = None
    latency: Mapping[int, float] = dataclasses.field(default_factory=dict)
    peak_memory_bytes: int | None = None
    peak_memory_of: str | None = None
    start_s: float | None = None
    setup_s: float | None = None
    first_run_s: float | None = None
    device: str | None = None
    is_efficient: bool = False
    run_ids: tuple[str, ...] = ()

    @property
    def outputs_per_s(self) -> float | None:
        """How many outputs there are in a second."""
        return None if not self.seconds_per_output else 1 / self.seconds_per_output

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON."""
        latency = {f"p{percent}": value for percent, value in self.latency.items()}
        median = statistics.median(self.seconds) if self.seconds else None
        return {
            **dataclasses.asdict(self),
            "median_s": median,
            "outputs_per_s": self.outputs_per_s,
            "latency": latency,
        }


def read_rows(
    spec: BenchSpec, folder: BenchFolder, problems: Mapping[str, str] | None = None
) -> list[BenchRow]:
    """Return the rows of a bench, the cheapest output first; what has no number is last.

    Args:
        spec: The bench.
        folder: Its folder.
        problems: Why cases have no runs, by their keys.
    """
    recorded = folder.recorded_runs()
    rows = [
        _row(spec, case, recorded.get(case.key, ()), (problems or {}).get(case.key))
        for case in spec.cases
    ]
    rows = [dataclasses.replace(row, is_efficient=_is_efficient(row, rows)) for row in rows]
    return sorted(
        rows,
        key=lambda row: (
            row.seconds_per_output is None,
            row.usd_per_output or 0.0,
            row.seconds_per_output or 0.0,
        ),
    )


def is_whole(spec: BenchSpec, row: BenchRow) -> bool:
    """Return whether resuming a bench would measure nothing more for a row."""
    return row.status == "out of memory" or (row.status == "measured" and row.runs >= spec.repeat)


def last_series(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Return the latest run that warmed up, and those after it."""
    marks = [run.read_spec().tags.get(REPEAT_TAG) == WARM_UP for run in runs]
    return list(runs[len(runs) - 1 - marks[::-1].index(True) :]) if any(marks) else []


def _row(spec: BenchSpec, case: Case, runs: Sequence[RunFolder], problem: str | None) -> BenchRow:
    series = last_series(runs)
    row = BenchRow(case.gpu, case.overrides, "not measured", problem)
    if not series:
        return row
    results = [(run.outcome(), run.read_manifest()) for run in series]
    first, manifest = results[0]
    row = dataclasses.replace(
        row,
        run_ids=tuple(run.path.name for run in series),
        start_s=_start_s(manifest) if first.timings else None,
        **_first_timings(first),
        device=first.environment.get("gpu") or _device(manifest),
    )
    failed = next((r for r, _ in results if r.status.has_ended and _has_failed(r)), None)
    if failed is not None:
        row = dataclasses.replace(row, **_failure(failed))
    if row.status == "out of memory":
        return row
    succeeded = [pair for pair in results[1:] if not _has_failed(pair[0])]
    measured, others = _warm(succeeded, manifest)
    if not measured:
        return row
    notes = [f"{others} of {len(succeeded)} runs were set up anew and don't count"] * bool(others)
    if failed is not None:
        notes.append(f"{len(measured)} of {spec.repeat} runs; {row.problem}")
    row = dataclasses.replace(row, status="measured", problem="; ".join(notes) or None)
    return _with_numbers(spec, row, measured)


def _has_failed(result: RunResult) -> bool:
    return result.status is not RunStatus.SUCCESS


def _first_timings(first: RunResult) -> dict[str, Any]:
    timings = first.timings
    if "run_s" not in timings:
        return {}
    return {
        "setup_s": timings.get("import_s", 0.0) + timings.get("setup_s", 0.0),
        "first_run_s": timings["run_s"],
    }


def _failure(result: RunResult) -> dict[str, Any]:
    error = result.error
    if error is None:
        return {"status": "not measured", "problem": f"run {result.run_id} was cancelled"}
    if error.kind in _OUT_OF_MEMORY:
        of_what = "the GPU's" if error.kind is ErrorKind.CUDA_OOM else "the machine's"
        return {"status": "out of memory", "problem": f"{of_what} memory was too small"}
    first_line = error.message.partition("\n")[0]
    return {"status": "failed", "problem": f"{error.type}: {first_line:.200}"}


def _warm(
    results: Sequence[tuple[RunResult, Manifest]], first: Manifest
) -> tuple[list[RunResult], int]:
    """Return the runs that count, and how many don't.

    Where runs share the process that the first run has set up, one in another process was set up
    anew, as when its container had ended. Where none does, each run has a process of its own.
    """
    shared = [result for result, manifest in results if manifest.process == first.process]
    kept = shared or [result for result, _ in results]
    return kept, len(results) - len(kept)


def _with_numbers(spec: BenchSpec, row: BenchRow, results: Sequence[RunResult]) -> BenchRow:
    seconds = [result.timings["run_s"] for result in results]
    row = dataclasses.replace(
        row, runs=len(results), seconds=tuple(sorted(seconds)), **_memory(results)
    )
    problems = [row.problem]
    try:
        row = dataclasses.replace(row, latency=percentiles(list(_latencies(spec, results))))
    except Error as e:
        problems.append(str(e))
    outputs: list[float] = []
    try:
        outputs = [outputs_of(result, _config(result), spec.per) for result in results]
    except Error as e:
        problems.append(str(e))
    row = dataclasses.replace(row, problem="; ".join(filter(None, problems)) or None)
    if not outputs:
        return row
    each = [s / n for s, n in zip(seconds, outputs, strict=True)]
    costs = [
        part * result.cost["estimate_usd"] / result.timings["total_s"]
        for part, result in zip(each, results, strict=True)
        if "estimate_usd" in result.cost
    ]
    return dataclasses.replace(
        row,
        outputs=statistics.median(outputs),
        seconds_per_output=statistics.median(each),
        seconds_per_output_spread=(min(each), max(each)),
        usd_per_output=statistics.median(costs) if len(costs) == len(each) else None,
    )


def _memory(results: Sequence[RunResult]) -> dict[str, Any]:
    for name, owner in (("peak_gpu_memory_bytes", "gpu"), ("peak_memory_bytes", "process")):
        peaks = [r.environment[name] for r in results if r.environment.get(name)]
        if peaks:
            return {"peak_memory_bytes": max(peaks), "peak_memory_of": owner}
    return {}


def _latencies(spec: BenchSpec, results: Sequence[RunResult]) -> Iterator[float]:
    """Yield the values whose percentiles are shown.

    Raises:
        Error: If no run has logged the metric.
    """
    if spec.latency is None:
        yield from (result.timings["run_s"] for result in results)
        return
    logged: set[str] = set()
    count = 0
    for result in results:
        for entry in result.metrics:
            metrics = entry.get("metrics", {})
            logged |= set(metrics)
            value = metrics.get(spec.latency)
            if isinstance(value, int | float) and math.isfinite(value):
                count += 1
                yield float(value)
    if not count:
        known = f"; logged: {', '.join(sorted(logged))}" if logged else ""
        raise Error(f"no run has logged {spec.latency!r}{suggest(spec.latency, logged)}{known}")


def percentiles(values: Sequence[float]) -> dict[int, float]:
    """Return for each percentage the smallest value that so many percent don't exceed."""
    ordered = sorted(values)
    return {p: ordered[max(0, math.ceil(p / 100 * len(ordered)) - 1)] for p in PERCENTILES}


def outputs_of(result: RunResult, config: Mapping[str, Any], per: str | None) -> float:
    """Return how much a run has put out: a number, or the length of a list.

    Args:
        result: The run.
        config: Its config.
        per: Where it stands, such as `results.num_images` or `config.batch_size`; None counts the
            run itself.

    Raises:
        Error: If there is none, or it is not above 0.
    """
    if per is None:
        return 1.0
    group, _, rest = per.partition(".")
    value: Any = config if group == "config" else result.results_json
    if group not in ("config", "results"):
        rest = per
    for part in rest.split(".") if rest else ():
        if not isinstance(value, dict) or part not in value:
            known = [str(name) for name in value] if isinstance(value, dict) else []
            there = f"; there are {', '.join(known)}" if known else ""
            owner = "config has" if group == "config" else "results have"
            raise Error(f"the {owner} no {per}{suggest(part, known)}{there}")
        value = value[part]
    count = len(value) if isinstance(value, list) else value
    if isinstance(count, bool) or not isinstance(count, int | float) or not count > 0:
        raise Error(f"{per} is {value!r:.60}; it must be a number above 0, or a list to count")
    return float(count)


def _config(result: RunResult) -> Mapping[str, Any]:
    assert result.run_dir is not None
    return RunFolder(result.run_dir).read_spec().config


def _start_s(manifest: Manifest) -> float | None:
    if manifest.modal is None or manifest.modal.started_at is None or manifest.began_at is None:
        return None
    began_at = datetime.datetime.fromisoformat(manifest.began_at).timestamp()
    return max(0.0, manifest.modal.started_at - began_at)


def _device(manifest: Manifest) -> str | None:
    names = [str(gpu.get("name")) for gpu in manifest.environment.get("gpus", ())]
    return names[0] if names else None


def _is_efficient(row: BenchRow, rows: Sequence[BenchRow]) -> bool:
    """Return whether no other row is as cheap and as fast, and better in one of both."""
    if row.usd_per_output is None or row.seconds_per_output is None:
        return False
    mine = (row.usd_per_output, row.seconds_per_output)
    others = [
        (r.usd_per_output, r.seconds_per_output)
        for r in rows
        if r.usd_per_output is not None and r.seconds_per_output is not None
    ]
    return not any(
        theirs != mine and theirs[0] <= mine[0] and theirs[1] <= mine[1] for theirs in others
    )
