"""Executes one run: the same function in a local worker process and in a Modal container.

It's the only place that catches `Exception`: whatever an experiment does, a `RunResult` comes
of it, and is on disk before it travels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TextIO, TypeVar

from ml_experiments.cache.layout import repo_folder, this_machine
from ml_experiments.cache.usage.watch import CacheWatch, UsedRevision
from ml_experiments.config.schema import call_function
from ml_experiments.config.secret_values import secret_config_values
from ml_experiments.config.validation import config_for
from ml_experiments.errors import (
    RunFolderError,
    SoftTimeout,
    SupersededError,
    UnportableResultError,
)
from ml_experiments.execution.events import CheckpointSaved, Event, Metrics, ModelsUsed, Progress
from ml_experiments.execution.hints import Hints, describe_damaged_folder
from ml_experiments.execution.interruptions import Interruption, noted_interrupt, soft_timeout
from ml_experiments.execution.launch.ranks import Rank, RankOutcome
from ml_experiments.execution.resource_usage import memory_and_gpu_use, reset_peak_memory
from ml_experiments.execution.seeding import seed_everything, watch_imports
from ml_experiments.execution.warm_experiment import OtherProcessNeeded, WarmExperiment
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.experiment.base import Experiment
from ml_experiments.experiment.checkpoints import Checkpoint
from ml_experiments.experiment.context import RunContext, set_current_run
from ml_experiments.experiment.hub_models import named_models
from ml_experiments.experiment.importing import load_experiment
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder, redact_result
from ml_experiments.runs.provenance.environment import this_environment, with_this_process
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.writing import encode

logger = logging.getLogger(__name__)

T = TypeVar("T")
Emit = Callable[[Event], None]
# a soft timeout of a run whose time was up before it started
_MIN_RUN_S = 0.01


def execute_run(
    spec: RunSpec,
    folder: RunFolder,
    *,
    emit: Emit,
    warm: WarmExperiment,
    hints: Hints,
    setup_key: str | None = None,
    secrets: Iterable[str] = (),
    began_at: float | None = None,
    is_preempted: Callable[[], bool] = lambda: False,
    on_returned: Callable[[], None] = lambda: None,
    reports_models: bool = False,
    in_ranks: Callable[[], RankOutcome] | None = None,
) -> RunResult:
    """Execute a run in this process, in its folder, and return what was written there.

    Args:
        spec: What to run.
        folder: The run folder; spec.json and manifest.json are there already.
        emit: Receives events while the experiment runs.
        warm: What this process kept from its last run.
        hints: What the user can do about an error, here.
        setup_key: For which later runs the set-up instance is kept; None for none.
        secrets: Values that no record may hold, besides those that the environment and the
            config name as secrets.
        began_at: When the run's timeout began to count, as `time.monotonic()`; now by default.
        is_preempted: Whether an interrupt means that the platform takes the machine away, and
            not that the user cancels the run. A preempted run leaves no result, and the
            KeyboardInterrupt is raised again.
        on_returned: Called when `run()` has ended; from then on interrupts do nothing.
        reports_models: Whether to emit which models of the cache the run uses.
        in_ranks: Calls the experiment in the processes that a launcher starts, instead of here.

    Raises:
        KeyboardInterrupt: If the run was preempted.
        OtherProcessNeeded: If the run has to be executed in another process.
    """
    started, pid = time.perf_counter(), os.getpid()
    hidden = (*secret_values(), *secrets)
    attempt = _Attempt(
        spec, folder, emit, warm, hints, hidden, setup_key, reports_models, began_at, in_ranks
    )
    _try(reset_peak_memory, None)
    _open_closed_streams()
    with noted_interrupt() as interrupted:
        error = attempt.run_experiment()
        if os.getpid() != pid:
            _end_forked_child(error)
        interrupted.is_over = True
        on_returned()
        if isinstance(error, KeyboardInterrupt) and not interrupted.is_watched:
            interrupted.fired = True
        if interrupted.fired and is_preempted():
            raise KeyboardInterrupt
        if isinstance(error, OtherProcessNeeded) and not interrupted.fired:
            raise error
        attempt.keep(error)
        if interrupted.fired:  # also where the experiment made something else of it
            attempt.status, attempt.error = RunStatus.CANCELLED, None
        return attempt.finish(time.perf_counter() - started)


def execute_rank(
    message: RunMessage,
    rank: Rank,
    *,
    emit: Emit,
    hints: Hints,
    on_begin: Callable[[], None],
    checkpoint: Checkpoint | None,
) -> RankOutcome:
    """Execute the experiment of a run in this process, which is one of its ranks.

    Args:
        message: The run.
        rank: Which of its ranks this process is.
        emit: Receives events; those of rank 0 are the run's.
        hints: What the user can do about an error, here.
        on_begin: Called when an interrupt is one of the experiment from now on.
        checkpoint: The newest one when the run began.
    """
    pid = os.getpid()
    attempt = _Attempt(
        message.spec,
        RunFolder(Path(message.folder), message.attempt),
        emit,
        WarmExperiment(),
        hints,
        (*secret_values(), *message.secrets),
        setup_key=None,
        reports_models=message.reports_models and rank.is_first,
        began_at=message.began_at,
        rank=rank,
        on_begin=on_begin,
        checkpoint=checkpoint,
    )
    with noted_interrupt() as interrupted:
        error = attempt.run_experiment()
        ended_at = time.monotonic()
        if os.getpid() != pid:
            _end_forked_child(error)
        interrupted.is_over = True
    if not rank.is_first:
        attempt.value = None  # not written to the folder, either
    attempt.keep(error)
    if rank.is_first:
        _try(attempt.note_models, None)
    return RankOutcome(
        ended_at,
        attempt.error,
        was_cut_short=interrupted.fired or attempt.soft_timeout.fired,
        results=attempt.results,
        timings=attempt.timings,
        usage=_try(memory_and_gpu_use, {}),
    )


def prepare_process() -> None:
    """Work out now what every run of this process, or of its forks, records."""
    for prepare in (this_environment, _cache_dir, watch_imports):
        _try(prepare, None)


def _end_forked_child(error: BaseException | None) -> NoReturn:
    """End a process that the experiment has forked, as Python ends one that returns.

    What it returned or raised is no result of the run, which its parent executes.
    """
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


@dataclass
class _Attempt:
    """One try at a run, and what it has come to so far."""

    spec: RunSpec
    folder: RunFolder
    emit: Emit
    warm: WarmExperiment
    hints: Hints
    secrets: tuple[str, ...]
    setup_key: str | None
    reports_models: bool
    began_at: float | None
    in_ranks: Callable[[], RankOutcome] | None = None
    rank: Rank | None = None  # of which this process is; None where it is the only one
    on_begin: Callable[[], None] = lambda: None
    checkpoint: Checkpoint | None = None  # for ranks other than 0
    has_instance: bool = False  # whose config is checked
    status: RunStatus = RunStatus.SUCCESS
    error: RunError | None = None
    results: Any = None
    timings: dict[str, float] = field(default_factory=dict)
    usage: dict[str, Any] = field(default_factory=dict)  # of the machine, by the ranks
    metrics_file: TextIO | None = None  # open once something is logged
    kept_models: tuple[UsedRevision, ...] = ()  # loaded by the setup() of an earlier run

    def __post_init__(self) -> None:
        self.redactor = Redactor(self.secrets)
        self.value: Any = None
        self.soft_timeout = Interruption()
        self.watch = CacheWatch(
            _cache_dir(),
            (lambda name: self.report_models((name,))) if self.reports_models else None,
        )

    def report_models(self, folders: Iterable[str]) -> None:
        """Emit which repositories of the cache the run uses."""
        if self.reports_models:
            self.emit(ModelsUsed(tuple(folders)))

    def note_start(self) -> None:
        """Say in the manifest which process, on which machine, executes the run."""
        self.folder.change_manifest(with_this_process, self.redactor)

    def run_experiment(self) -> BaseException | None:
        """Run the experiment; return what it raised."""
        try:
            self.on_begin()
            if self.rank is None:
                self.note_start()
            if self.in_ranks is not None:  # each of them has its soft timeout
                self.value = self.in_ranks()
                return None
            with (
                self.watch,
                self.context(),
                soft_timeout(self._soft_timeout_s()) as self.soft_timeout,
            ):
                self.value = self.call()
        except BaseException as e:  # noqa: BLE001 - any becomes a result
            return e
        return None

    def _soft_timeout_s(self) -> float | None:
        """Return in how many seconds the soft timeout is due."""
        limit_s = self.spec.soft_timeout_s
        if limit_s is None or self.began_at is None:
            return limit_s
        return max(_MIN_RUN_S, limit_s - (time.monotonic() - self.began_at))

    def call(self) -> Any:
        """Import, set up and run the experiment."""
        spec = self.spec
        with self._timed("import_s"):
            target = load_experiment(spec.experiment, spec.import_paths)
            config = config_for(target, spec.config)
        self.redactor = Redactor((*self.secrets, *secret_config_values(config)))
        self._announce_models(target, config)
        seed_everything(spec.seed)
        if not isinstance(target, type):
            self.warm.drop()
            with self._timed("run_s"):
                return call_function(target, config)
        with self._timed("setup_s"):
            instance = self._set_up(target, config)
        seed_everything(spec.seed)
        with self._timed("run_s"):
            return instance.run()

    def _set_up(self, target: type[Any], config: Any) -> Any:
        if not issubclass(target, Experiment):
            self.warm.drop()
            return target(config)
        instance, is_new = self.warm.take(target, self.setup_key, config)
        self.has_instance = True
        if is_new:
            self.warm.set_up(instance, self.setup_key)
            if self.setup_key is not None:
                self.timings["setup_saved_s"] = 0.0
            self.warm.models = tuple(
                dataclasses.replace(model, hit=True) for model in self.watch.used()
            )
        else:
            self.kept_models = self.warm.models
            self.timings["setup_saved_s"] = self.warm.setup_s
            if self.kept_models:
                self.report_models(model.folder for model in self.kept_models)
        return instance

    def _announce_models(self, target: Callable[..., Any], config: Any) -> None:
        """Tell which models the config names; what a subprocess opens is not seen otherwise."""
        if not self.reports_models:
            return
        try:
            names = named_models(target, config, self.spec.config).hub
            folders = [repo_folder(name.partition("@")[0]) for name in names]
        except Exception as e:  # noqa: BLE001 - the user's hook; elsewhere no run depends on it
            logger.warning("hub_models() failed: %s: %s", type(e).__name__, e)
            return
        if folders:
            self.report_models(folders)

    def keep(self, error: BaseException | None) -> None:
        """Encode what `run()` returned, or turn what it raised into the run's error."""
        try:
            if error is not None:
                raise error
            if isinstance(self.value, RankOutcome):
                self._take_over(self.value)
                return
            # what can be represented is kept, even if another part can't
            self.results, problems = self._encode(self.value, "results")
            if problems:
                raise UnportableResultError(problems)
            if self.soft_timeout.fired:
                raise SoftTimeout(f"the run had {self.spec.timeout_s:g} s")
        except BaseException as e:  # noqa: BLE001 - see above
            self.fail(e)
        self.value = None

    def _take_over(self, outcome: RankOutcome) -> None:
        """Make what came of the ranks what came of the run."""
        self.results, self.usage = outcome.results, outcome.usage
        self.timings.update(outcome.timings)
        if outcome.error is not None:
            self.status, self.error = RunStatus.ERROR, outcome.error

    def _encode(self, value: Any, name: str) -> tuple[Any, tuple[str, ...]]:
        return encode(
            value,
            self.folder.artifacts_dir,
            name,
            self.redactor.redact_text,
            durable=name
            == "results",  # not at each step: the lines of metrics.jsonl aren't, either
        )

    def fail(self, error: BaseException) -> None:
        """Turn an exception into the run's error."""
        self.status = RunStatus.ERROR
        self.error = self.hints.describe(error, self.spec)

    def finish(self, total_s: float) -> RunResult:
        """Write result.json and return it as written; nothing else may keep it from that."""
        _try(self.note_models, None)
        # a mistake that is found before anything is done leaves nothing broken behind
        is_harmless = self.error is not None and (
            self.error.kind is ErrorKind.CONFIG or not self.has_instance
        )
        if self.status is not RunStatus.SUCCESS and not is_harmless:
            _try(self.warm.drop, None)
        result = RunResult(
            run_id=self.spec.run_id,
            status=self.status,
            experiment_class=self.spec.experiment,
            results_json=self.results,
            error=self.error,
            artifacts=_try(self.folder.list_artifacts, ()),
            timings={**self.timings, "total_s": total_s},
            environment={
                "python": platform.python_version(),
                "hostname": socket.gethostname(),
                **(self.usage or _try(memory_and_gpu_use, {})),
            },
            run_dir=self.folder.path,
        )
        try:
            return self.folder.write_result(result, self.redactor)
        except SupersededError:
            return result
        # a full disk, or no folder any more: the outcome travels without a copy on disk
        except (OSError, RunFolderError) as e:
            if self.error is None:
                self.fail(e)
                if isinstance(e, RunFolderError):
                    self.error = describe_damaged_folder(e)
            result = dataclasses.replace(result, status=self.status, error=self.error)
            return redact_result(result, self.redactor)

    def note_models(self) -> None:
        """Name in the manifest the exact weights, and in the cache that they were used."""
        own = self.watch.used()
        seen = {(model.kind, model.repo_id, model.revision) for model in own}
        kept = [m for m in self.kept_models if (m.kind, m.repo_id, m.revision) not in seen]
        models = (*own, *kept)
        if not models:
            return
        from ml_experiments.cache.usage.recorded_uses import record_uses  # most runs use none

        record_uses(_cache_dir(), models)
        cached = tuple(model.to_dict() for model in models)
        self.folder.change_manifest(
            lambda manifest: dataclasses.replace(manifest, cached_models=cached), self.redactor
        )

    @property
    def _reports(self) -> bool:
        """Whether what the experiment reports in this process is the run's."""
        return self.rank is None or self.rank.is_first

    @contextmanager
    def context(self) -> Iterator[None]:
        """Make `current_run()` answer while the experiment runs."""
        rank = self.rank or Rank()
        context = RunContext(
            run_id=self.spec.run_id,
            _output_dir=self.folder.artifacts_dir,
            _checkpoint_dir=self.folder.checkpoint_dir,
            seed=self.spec.seed,
            _log=self._log,
            _progress=self._progress,
            _on_checkpoint=lambda: self.emit(CheckpointSaved()),
            rank=rank.number,
            local_rank=rank.local,
            world_size=rank.world_size,
            _resumes_from=self.checkpoint,
        )
        set_current_run(context)
        try:
            yield
        finally:
            set_current_run(None)
            if self.metrics_file is not None:
                self.metrics_file.close()

    def _log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        if not self._reports:
            return
        place = "metrics" if step is None else f"metrics/{step}"
        encoded, problems = self._encode(dict(metrics), place)
        if problems:
            raise UnportableResultError(problems)
        entry = {"step": step, "time": time.time(), "metrics": encoded}
        entry = self.redactor.redact_record(entry, ("metrics",))
        if self.metrics_file is None:
            self.metrics_file = self.folder.open_metrics()
        self.metrics_file.write(json.dumps(entry, allow_nan=False) + "\n")
        self.emit(Metrics(entry["metrics"], step))

    def _progress(self, done: float, total: float | None, text: str) -> None:
        if not self._reports:
            return
        text = self.redactor.redact_text(text)
        self.emit(Progress(float(done), None if total is None else float(total), text))

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = time.perf_counter() - started


@functools.cache
def _cache_dir() -> Path:
    return this_machine()


def _open_closed_streams() -> None:
    """Give a run standard streams that work, even if the run before has closed them."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            fresh = open(descriptor, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
            setattr(sys, name, fresh)


def _try(get: Callable[[], T], default: T) -> T:
    """Return what a function returns, or a default when it fails: the result matters more."""
    try:
        return get()
    except Exception as e:  # noqa: BLE001 - such as a GPU that answers nothing any more
        logger.warning("%s failed: %s: %s", get.__qualname__, type(e).__name__, e)
        return default
