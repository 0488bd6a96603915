"""Ranks GPU types by what an output costs, as earlier runs tell, and scores its predictions."""

from __future__ import annotations

import dataclasses
import datetime
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.backends.modal.gpus import CATALOGUE
from ml_experiments.runner.bench.history import History, PastRun

PREDICTIONS = "predictions.jsonl"  # in the runs folder, one line for each
_GIB = 2**30


@dataclass(frozen=True)
class Prediction:
    """What a number of outputs is going to take on a GPU type.

    Attributes:
        gpu: The GPU type.
        overrides: The values of the fields in which the runs differ.
        runs: How many runs it comes from.
        seconds_each: Seconds of `run()` for an output, the median of the runs.
        seconds: Set-up and all outputs, from the fastest, the median and the slowest run.
        usd: The same in US dollars.
        usd_each: The dollars of the median for one output, the set-up shared among all of them.
        problem: Why it is outside of the deadline or the budget.
    """

    gpu: str
    overrides: tuple[str, ...]
    runs: int
    seconds_each: float
    seconds: tuple[float, float, float]
    usd: tuple[float, float, float]
    usd_each: float
    problem: str | None = None


@dataclass(frozen=True)
class Score:
    """A prediction against the runs that came after it.

    Attributes:
        runs: How many came.
        predicted_s: Seconds for an output, as they were predicted.
        actual_s: The median of the runs that came.
    """

    gpu: str
    overrides: tuple[str, ...]
    runs: int
    predicted_s: float
    actual_s: float

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what came."""
        return self.predicted_s / self.actual_s - 1


@dataclass(frozen=True)
class Recommendation:
    """GPU types, the cheapest output first.

    Attributes:
        outputs: For how many outputs.
        ranking: Those within deadline and budget.
        outside: Those that are not; each says why.
        ruled_out: GPU types whose memory is too small, perhaps for some values only, and why.
        without_data: GPU types of which no run tells anything.
        last_prediction: When the prediction was made that is scored, in ISO 8601.
        scores: The last prediction that runs came after, against these.
    """

    outputs: float
    ranking: tuple[Prediction, ...] = ()
    outside: tuple[Prediction, ...] = ()
    ruled_out: Mapping[str, str] = dataclasses.field(default_factory=dict)
    without_data: tuple[str, ...] = ()
    last_prediction: str | None = None
    scores: tuple[Score, ...] = ()

    @property
    def fastest(self) -> Prediction | None:
        """The fastest of the ranking."""
        return min(self.ranking, key=lambda p: p.seconds[1], default=None)


def recommend(
    history: History,
    *,
    outputs: float | None = None,
    deadline_s: float | None = None,
    budget_usd: float | None = None,
) -> Recommendation:
    """Rank the GPU types that an experiment has run on.

    The slowest of the runs decides whether a GPU type is within the deadline and the budget.

    Args:
        history: Its runs.
        outputs: For how many outputs; by default as many as a run has had, their median.
        deadline_s: In how many seconds they must be there, the set-up included.
        budget_usd: How many US dollars they may cost.
    """
    counted = [run.outputs for run in history.runs if run.outputs is not None]
    wanted = outputs or (statistics.median(counted) if counted else 1.0)
    found = [_predict(runs, wanted, history.setups) for runs in _groups(history.runs)]
    predictions = [
        dataclasses.replace(p, problem=_problem(p, deadline_s, budget_usd)) for p in found if p
    ]
    predictions.sort(key=lambda p: (p.usd_each, p.seconds))
    known = {prediction.gpu for prediction in predictions}
    ruled_out = {
        **dict(_too_small(history.runs, known)),
        **dict(_too_large(history.runs, {(p.gpu, p.overrides) for p in predictions})),
    }
    return Recommendation(
        wanted,
        tuple(p for p in predictions if p.problem is None),
        tuple(p for p in predictions if p.problem is not None),
        ruled_out,
        tuple(g.key for g in CATALOGUE if g.key not in known and g.key not in ruled_out),
    )


def _groups(runs: Sequence[PastRun]) -> Iterator[list[PastRun]]:
    """Yield the runs of each GPU type and set of values that have succeeded and can be counted."""
    groups: dict[tuple[str, tuple[str, ...]], list[PastRun]] = {}
    for run in runs:
        if run.gpu is not None and run.seconds is not None and run.outputs:
            groups.setdefault((str(run.gpu), run.overrides), []).append(run)
    yield from groups.values()


def _predict(
    runs: Sequence[PastRun], outputs: float, setups: Sequence[PastRun]
) -> Prediction | None:
    """Return what outputs are going to take; None where no price is known."""
    usd_per_s = runs[-1].usd_per_s
    if usd_per_s is None:
        return None
    # another set of values may have set up for these
    own = [run for run in setups if run in runs] or [r for r in setups if r.gpu == runs[0].gpu]
    setup_s = statistics.median(run.setup_s for run in own)
    each = seconds_each(runs)
    seconds = tuple(setup_s + outputs * s for s in (min(each), statistics.median(each), max(each)))
    usd = tuple(usd_per_s * s for s in seconds)
    return Prediction(
        gpu=str(runs[0].gpu),
        overrides=runs[0].overrides,
        runs=len(each),
        seconds_each=statistics.median(each),
        seconds=(seconds[0], seconds[1], seconds[2]),
        usd=(usd[0], usd[1], usd[2]),
        usd_each=usd[1] / outputs,
    )


def seconds_each(runs: Sequence[PastRun]) -> list[float]:
    """Return the seconds of `run()` for an output, of those runs that were warm, if there are any.

    The first run in a process may have warmed it up.
    """
    seen: set[Any] = set()
    warm: list[float] = []
    every: list[float] = []
    for run in runs:
        assert run.seconds is not None
        assert run.outputs is not None
        every.append(run.seconds / run.outputs)
        if run.process in seen:
            warm.append(every[-1])
        seen.add(run.process)
    return warm or every


def _problem(
    prediction: Prediction, deadline_s: float | None, budget_usd: float | None
) -> str | None:
    if deadline_s is not None and prediction.seconds[2] > deadline_s:
        return "too slow"
    if budget_usd is not None and prediction.usd[2] > budget_usd:
        return "too dear"
    return None


def _too_small(runs: Sequence[PastRun], known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield the GPU types that no run has succeeded on and whose memory is too small."""
    failed = [run for run in runs if run.is_out_of_memory and run.gpu is not None]
    peaks = [run for run in runs if run.peak_gpu_memory_bytes and run.seconds is not None]
    for gpu in CATALOGUE:
        if gpu.key in known:
            continue
        larger = [run for run in failed if run.gpu and run.gpu.memory_gb >= gpu.memory_gb]
        if larger:
            run = min(larger, key=lambda run: run.gpu.memory_gb if run.gpu else 0)
            on = "" if run.gpu and run.gpu.gpu == gpu else f" on {run.gpu}, which has no less"
            yield gpu.key, f"run {run.run_id} ran out of memory{on}"
        elif peaks:
            least = min(peaks, key=lambda run: run.peak_gpu_memory_bytes or 0)
            peak = least.peak_gpu_memory_bytes or 0
            if peak > gpu.memory_gb * _GIB:
                on = f" on {least.gpu}" if least.gpu is not None else ""
                yield gpu.key, f"run {least.run_id} took {peak / _GIB:.1f} GiB{on}"


def _too_large(
    runs: Sequence[PastRun], known: set[tuple[str, tuple[str, ...]]]
) -> Iterator[tuple[str, str]]:
    """Yield the sets of values that were too large for a GPU type on which others have room."""
    gpus = {gpu for gpu, _ in known}
    for run in runs:
        where = (str(run.gpu), run.overrides)
        if run.is_out_of_memory and where[0] in gpus and where not in known:
            yield " ".join((where[0], *run.overrides)), f"run {run.run_id} ran out of memory"


def score_predictions(
    recommendation: Recommendation, history: History, runs_dir: Path, asked: Mapping[str, Any]
) -> Recommendation:
    """Add how good the last prediction was that runs came after, and record this one.

    Args:
        recommendation: This one.
        history: What it comes from.
        runs_dir: Where predictions are kept.
        asked: What it is about: only predictions of the same are compared.
    """
    earlier = [p for p in _read_predictions(runs_dir) if p.get("asked") == asked]
    for record in reversed(earlier):
        scores = tuple(_scores(record, history))
        if scores:
            recommendation = dataclasses.replace(
                recommendation, last_prediction=str(record["at"]), scores=scores
            )
            break
    newest = history.runs[-1].run_id if history.runs else None
    predictions = (*recommendation.ranking, *recommendation.outside)
    if predictions and (not earlier or earlier[-1].get("newest_run") != newest):
        record = {
            "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "asked": asked,
            "newest_run": newest,
            "predictions": [
                {"gpu": p.gpu, "overrides": list(p.overrides), "seconds_each": p.seconds_each}
                for p in predictions
            ],
        }
        with (runs_dir / PREDICTIONS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
    return recommendation


def _read_predictions(runs_dir: Path) -> list[dict[str, Any]]:
    """Return what was predicted; a line that was not written to its end is left out."""
    try:
        lines = (runs_dir / PREDICTIONS).read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("predictions"), list):
            found.append(record)
    return found


def _scores(record: Mapping[str, Any], history: History) -> Iterator[Score]:
    later = [run for run in history.runs if run.run_id > str(record.get("newest_run"))]
    groups = {(str(runs[0].gpu), runs[0].overrides): runs for runs in _groups(later)}
    for predicted in record["predictions"]:
        gpu, overrides = str(predicted.get("gpu")), tuple(predicted.get("overrides", ()))
        runs = groups.get((gpu, overrides))
        if runs is not None:
            each = seconds_each(runs)
            seconds = float(predicted["seconds_each"])
            yield Score(gpu, overrides, len(each), seconds, statistics.median(each))
