"""Optuna's side of a sweep: which point comes next, and which is to end early.

Optuna's journal has one writer, the process that runs the sweep. It is an index: the runs are the
truth, and it is made again from their folders when it is damaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_experiments.errors import ConfigError, Error, PreflightError
from ml_experiments.runner.sweeps.folder import SweepSpec
from ml_experiments.runner.sweeps.search_space.axes import Axis, Choice, Interval
from ml_experiments.runner.sweeps.search_space.space import Space

if TYPE_CHECKING:
    import optuna

logger = logging.getLogger(__name__)

# sampler -> its class, and the packages that it takes besides Optuna itself
SAMPLERS = {
    "random": ("RandomSampler", ()),
    "tpe": ("TPESampler", ()),
    "gp": ("GPSampler", ("torch", "scipy")),
    "cmaes": ("CmaEsSampler", ("cmaes",)),
    "nsga2": ("NSGAIISampler", ()),
    "qmc": ("QMCSampler", ("scipy",)),
}
# those whose points do not depend on what earlier points scored
INDEPENDENT = ("random", "qmc")
MIN_FOR_IMPORTANCES = 10  # points; of fewer, the best tenth is one by chance
_LOG_FROM = 100  # the largest of some numbers over the smallest
PRUNERS = ("median", "percentile", "halving", "hyperband", "wilcoxon")
_STUDY = "sweep"
_TRIAL_BEGINS, _HAS_PARAMETER, _HAS_STATE = 4, 5, 6  # operations in Optuna's journal
_RUNNING = 0  # a state there


@dataclass(frozen=True)
class Trial:
    """A point that Optuna knows.

    Attributes:
        number: Its number in the study.
        overrides: What it sets in the config.
        is_open: Whether its score was not reported yet.
    """

    number: int
    overrides: tuple[str, ...]
    is_open: bool


@dataclass(frozen=True)
class PastTrial:
    """A point as its run folder tells of it, to make a study from.

    Attributes:
        number: Its number in the study.
        overrides: What it sets in the config.
        score: Its score; None if it has none.
        has_ended: Whether its run has.
        steps: What it logged, by step.
        is_pruned: Whether it was ended early.
    """

    number: int
    overrides: tuple[str, ...]
    score: float | None
    has_ended: bool
    steps: tuple[tuple[int, float], ...] = ()
    is_pruned: bool = False


def learns(sampler: str) -> bool:
    """Return whether the points that a sampler suggests depend on what earlier ones scored."""
    return sampler not in ("grid", *INDEPENDENT)


def check_packages(sampler: str, pruner: str | None) -> None:
    """Make sure that what a sampler and a pruner take is installed.

    Raises:
        PreflightError: If not.
    """
    import importlib.util

    needed = ["optuna", *(SAMPLERS[sampler][1] if sampler in SAMPLERS else ())]
    if pruner == "wilcoxon":
        needed.append("scipy")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        what = f"the sampler {sampler}" if sampler != "grid" else f"the pruner {pruner}"
        what = "the importance of parameters" if (sampler, pruner) == ("grid", None) else what
        raise PreflightError(
            f"{what} needs {', '.join(missing)}, which is not installed here; install it with: "
            f"pip install 'ml_experiments[sweep]'{' torch' if 'torch' in missing else ''}"
        )


def importances(
    spec: SweepSpec, scores: Sequence[tuple[tuple[str, ...], float]]
) -> dict[str, float]:
    """Return how much each axis that varies tells the best points from the others.

    Optuna's PED-ANOVA compares how the best tenth and all points are spread over each axis.

    Args:
        spec: The sweep.
        scores: The overrides and the score of each point that has one.

    Returns:
        Shares that add up to 1, the largest first.

    Raises:
        Error: If there are none; the message says why.
    """
    space = spec.space
    varied = [axis.name for axis in space.axes if axis.grid is None or len(axis.grid) > 1]
    if spec.metric is None:
        raise Error(
            "the sweep compares no result; start it with --minimize results.loss or --maximize"
        )
    if len(varied) < 2:
        raise Error(
            f"only {varied[0]} varies, so there is nothing to compare its importance with"
            if varied
            else "nothing varies in this sweep"
        )
    if len(scores) < MIN_FOR_IMPORTANCES:
        raise Error(
            f"{len(scores)} of the points have a score, and importances take at least "
            f"{MIN_FOR_IMPORTANCES}"
        )
    if len({score for _, score in scores}) == 1:
        raise Error(f"all {len(scores)} points have the same {spec.metric}")
    check_packages("grid", None)
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    past = [PastTrial(n, point, score, True) for n, (point, score) in enumerate(scores)]
    # numbers that were listed are on a scale, too
    numeric = Space(tuple(map(_on_a_scale, space.axes)))
    study = Study(dataclasses.replace(spec, axes=numeric.to_dict()), None, lambda: past)._study
    with _quiet():
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=varied)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _on_a_scale(axis: Axis) -> Axis:
    """Return an axis of listed numbers as an interval; any other as it is."""
    if not isinstance(axis, Choice) or len(axis.values) < 2:
        return axis
    try:
        numbers = [float(value) for value in axis.values]
    except ValueError:
        return axis
    low, high = min(numbers), max(numbers)
    if not math.isfinite(high - low):
        return axis
    return Interval(axis.name, low, high, is_log=low > 0 and high / low >= _LOG_FROM)


class Study:
    """Suggests points and takes their scores.

    Args:
        spec: The sweep.
        journal: Where Optuna keeps what it knows; None for memory only.
        past: Reads the trials from the run folders.
    """

    def __init__(
        self, spec: SweepSpec, journal: Path | None, past: Callable[[], Sequence[PastTrial]]
    ) -> None:
        self._spec = spec
        self._space = spec.space
        with _quiet():
            self._study = self._open(journal, past)

    @property
    def count(self) -> int:
        """How many points were suggested."""
        return len(self._study.get_trials(deepcopy=False))

    def trials(self) -> Iterator[Trial]:
        """Yield the points that were suggested."""
        for frozen in self._study.get_trials(deepcopy=False):
            # a trial of which only the number is known belongs to no point
            if set(frozen.params) == {axis.name for axis in self._space.axes}:
                overrides = overrides_of(self._space, frozen.params)
                yield Trial(frozen.number, overrides, not frozen.state.is_finished())

    def ask(self) -> Trial:
        """Return the next point; the same one whenever the same scores are known.

        Raises:
            Error: If the sampler fails.
        """
        with _quiet():
            self._study.sampler = self._sampler(self.count)
            try:
                trial = self._study.ask(distributions_of(self._space))
            except (ValueError, RuntimeError, ImportError) as e:
                raise Error(f"the sampler {self._spec.sampler} failed: {e}") from e
        return Trial(trial.number, overrides_of(self._space, trial.params), True)

    def begin(self, overrides: Sequence[str]) -> int:
        """Take note that a point of a grid starts; return its number here."""
        from optuna.trial import TrialState, create_trial

        with _quiet():
            self._study.add_trial(
                create_trial(
                    state=TrialState.RUNNING,
                    params=params_of(self._space, overrides),
                    distributions=distributions_of(self._space),
                )
            )
        return self.count - 1

    def report(self, number: int, step: int, value: float) -> bool:
        """Take what a running point has logged; return whether to end it."""
        import optuna

        frozen = self._study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished() or step in frozen.intermediate_values:
            return False
        with _quiet():
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            trial.report(value, step)
            return trial.should_prune()

    def tell(self, number: int, score: float | None, *, is_pruned: bool = False) -> None:
        """Take the score of a point; None for one that has failed, or has none."""
        from optuna.trial import TrialState

        state = TrialState.FAIL if score is None else TrialState.COMPLETE
        with _quiet():
            self._study.tell(
                number,
                score,
                state=TrialState.PRUNED if is_pruned else state,
                skip_if_finished=True,
            )

    def _open(self, journal: Path | None, past: Callable[[], Sequence[PastTrial]]) -> optuna.Study:
        known = past()
        if journal is not None and journal.exists():
            try:
                return self._load(journal, known)
            except Exception as e:  # noqa: BLE001 - Optuna names no errors for a damaged journal
                damaged = journal.with_name(f"{journal.name}.damaged")
                journal.replace(damaged)
                logger.warning(
                    "%s is damaged (%s: %s); it is made again from the run folders, and kept as %s",
                    *(journal, type(e).__name__, e, damaged.name),
                )
        study = self._create(journal)
        self._add(study, known)
        return study

    def _storage(self, journal: Path | None) -> Any:
        from optuna.storages import InMemoryStorage
        from optuna.storages.journal import (
            JournalFileBackend,
            JournalFileOpenLock,
            JournalStorage,
        )

        if journal is None:
            return InMemoryStorage()
        path = str(journal.absolute())
        # of a process that has died: the sweep's own lock is held
        Path(f"{path}.lock").unlink(missing_ok=True)
        return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))

    def _load(self, journal: Path, known: Sequence[PastTrial]) -> optuna.Study:
        import optuna

        _check_lines(journal, {axis.name for axis in self._space.axes})
        study = optuna.load_study(
            study_name=_STUDY, storage=self._storage(journal), pruner=self._pruner()
        )
        newest = max((trial.number for trial in known), default=-1)
        if newest >= len(study.get_trials(deepcopy=False)):
            raise ValueError(f"point {newest} has run and is not in it")
        return study

    def _create(self, journal: Path | None) -> optuna.Study:
        import optuna

        return optuna.create_study(
            study_name=_STUDY,
            storage=self._storage(journal),
            direction="maximize" if self._spec.direction == "maximize" else "minimize",
            pruner=self._pruner(),
        )

    def _add(self, study: optuna.Study, past: Sequence[PastTrial]) -> None:
        """Add the trials of the run folders under their numbers."""
        from optuna.trial import TrialState, create_trial

        distributions = distributions_of(self._space)
        known = {trial.number: trial for trial in past}
        for number in range(max(known, default=-1) + 1):
            trial = known.get(number)
            if trial is None:  # a point that was suggested, but had no run of its own
                study.add_trial(create_trial(state=TrialState.FAIL))
                continue
            state = TrialState.COMPLETE if trial.score is not None else TrialState.FAIL
            state = TrialState.PRUNED if trial.is_pruned else state
            study.add_trial(
                create_trial(
                    state=state if trial.has_ended else TrialState.RUNNING,
                    value=trial.score if trial.has_ended else None,
                    params=params_of(self._space, trial.overrides),
                    distributions=distributions,
                    intermediate_values=dict(trial.steps),
                )
            )

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return a sampler for one point.

        The state of a random generator is not in the journal. A sampler for each point, with a
        seed of its own, suggests after a resumption what it would have suggested without.
        """
        import optuna

        name = self._spec.sampler
        seed = self._spec.seed % 2**31
        if name == "qmc":
            return _sequence(self._space, seed, number)
        kind = getattr(optuna.samplers, SAMPLERS[name][0])
        return kind(seed=(seed + number) % 2**31)  # type: ignore[no-any-return]

    def _pruner(self) -> optuna.pruners.BasePruner:
        from optuna import pruners

        steps = self._spec.min_steps
        match self._spec.pruner:
            case "median":
                return pruners.MedianPruner(n_warmup_steps=steps)
            case "percentile":  # all but the best quarter
                return pruners.PercentilePruner(25.0, n_warmup_steps=steps)
            case "halving":
                return pruners.SuccessiveHalvingPruner(min_resource=steps)
            case "hyperband":
                return pruners.HyperbandPruner(min_resource=steps)
            case "wilcoxon":
                return pruners.WilcoxonPruner(n_startup_steps=steps)
        return pruners.NopPruner()


def _sequence(space: Space, seed: int, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler for one point of a quasi-random sequence: that of its number.

    Optuna's own counts in the study, and begins once a point has a score. Without a metric none
    has, and it would suggest the first point again and again.
    """
    from optuna.samplers import QMCSampler

    class Sequence(QMCSampler):
        def infer_relative_search_space(self, *_: Any) -> dict[str, Any]:
            return distributions_of(space)

        def _find_sample_id(self, *_: Any) -> int:
            return number

    return Sequence(seed=seed, scramble=True)


def distributions_of(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """Return the axes as Optuna's distributions; a choice as the strings that were written."""
    return {axis.name: _distribution(axis) for axis in space.axes}


def _distribution(axis: Axis) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.values)
    if axis.is_int:
        step = int(axis.step or 1)
        return IntDistribution(int(axis.low), int(axis.high), log=axis.is_log, step=step)
    return FloatDistribution(axis.low, axis.high, log=axis.is_log, step=axis.step)


def overrides_of(space: Space, params: dict[str, Any]) -> tuple[str, ...]:
    """Return Optuna's parameters as overrides, in the order of the axes."""
    return tuple(f"{axis.name}={params[axis.name]}" for axis in space.axes)


def params_of(space: Space, overrides: Sequence[str]) -> dict[str, Any]:
    """Return overrides as Optuna's parameters.

    Raises:
        ConfigError: If they are of another space.
    """
    written = dict(override.partition("=")[::2] for override in overrides)
    params: dict[str, Any] = {}
    for axis in space.axes:
        if axis.name not in written:
            raise ConfigError(f"a point of the sweep has no {axis.name}")
        value = written[axis.name]
        if isinstance(axis, Choice):
            params[axis.name] = value
        else:
            params[axis.name] = int(value) if axis.is_int else float(value)
    return params


def finished_trials(journal: Path) -> set[int]:
    """Return the numbers of the trials that are told, as far as a journal is readable.

    It may be written to meanwhile, and takes neither Optuna nor a lock to read.
    """
    finished: set[int] = set()
    count = 0
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in journal.read_text("utf-8", "replace").splitlines():
            record = json.loads(line)
            is_new = record["op_code"] == _TRIAL_BEGINS
            count += is_new
            if record["op_code"] == _HAS_STATE or (is_new and "state" in record):
                number = count - 1 if is_new else record["trial_id"]
                if record["state"] != _RUNNING:
                    finished.add(number)
    return finished


def _check_lines(journal: Path, axes: Collection[str]) -> None:
    """Cut off what a killed process has not written to its end.

    Optuna would append to a last line that is not whole, and read nothing more. A suggestion that
    was not made to its end belongs to no point; it is made again, and comes to the same.

    Raises:
        ValueError: If another line is not JSON; Optuna would notice that only later.
    """
    content = journal.read_bytes()
    end = content.rfind(b"\n") + 1
    lines = content[:end].splitlines(keepends=True)
    records = [json.loads(line) for line in lines]
    begun = [n for n, record in enumerate(records) if record["op_code"] == _TRIAL_BEGINS]
    if begun:
        last = records[begun[-1] :]
        names = {record["param_name"] for record in last if record["op_code"] == _HAS_PARAMETER}
        if "state" not in last[0] and not names.issuperset(axes):  # else it was added whole
            end = sum(map(len, lines[: begun[-1]]))
    if end < len(content):
        journal.with_name(f"{journal.name}.cut").write_bytes(content[end:])
        os.truncate(journal, end)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from printing what it does, and which of its parts are experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
