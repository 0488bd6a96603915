"""Executes one run: the same function in a local worker process and in a Modal container.

It's the only place that catches `Exception`: whatever an experiment does, a `RunResult` comes
of it, and is on disk before it travels.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import platform
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar

from ml_experiments.cache.layout import repo_folder, this_machine
from ml_experiments.cache.usage.recorded_uses import record_uses
from ml_experiments.cache.usage.watch import CacheWatch, UsedRevision
from ml_experiments.config.schema import call_function
from ml_experiments.config.secret_values import secret_config_values
from ml_experiments.config.validation import config_for
from ml_experiments.errors import SoftTimeout, UnportableResultError
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.interruptions import noted_interrupt, soft_timeout
from ml_experiments.execution.resource_usage import memory_and_gpu_use, reset_peak_memory
from ml_experiments.execution.seeding import seed_everything
from ml_experiments.execution.warm_experiment import WarmExperiment
from ml_experiments.experiment.base import Experiment
from ml_experiments.experiment.context import RunContext, set_current_run
from ml_experiments.experiment.hub_models import hub_models
from ml_experiments.experiment.importing import load_experiment
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.environment import describe_environment
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.result import RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.writing import encode

logger = logging.getLogger(__name__)

T = TypeVar("T")
Event = dict[str, Any]
Emit = Callable[[Event], None]


def execute_run(
    spec: RunSpec,
    folder: RunFolder,
    *,
    emit: Emit,
    warm: WarmExperiment,
    hints: Hints,
    interrupt: Literal["cancels", "preempts"],
    cancellations: tuple[type[BaseException], ...] = (),
    secrets: Iterable[str] = (),
    on_repositories: Callable[[Iterable[str]], None] | None = None,
) -> RunResult:
    """Execute a run in this process, in its folder, and return what was written there.

    Args:
        spec: What to run.
        folder: The run folder; spec.json and manifest.json are there already.
        emit: Receives events (progress, metrics) while the experiment runs.
        warm: What this process kept from its last run.
        hints: What the user can do about an error, here.
        interrupt: What a KeyboardInterrupt means here: the user cancels the run, or the
            platform takes the machine away. A preempted run leaves no result, and the
            interrupt goes on, so that the platform starts the run again.
        cancellations: What the platform raises here to cancel the run; it goes on.
        secrets: Values that no record may hold, besides those that the environment and the
            config name as secrets.
        on_repositories: Hears at once which repositories of the cache the run uses, as
            `models--org--name`; it must not raise or wait.
    """
    started = time.perf_counter()
    hidden = (*secret_values(), *secrets)
    attempt = _Attempt(spec, folder, emit, warm, hints, hidden, on_repositories)
    _try(reset_peak_memory, None)
    _open_closed_streams()
    with noted_interrupt() as interrupted:
        try:
            attempt.execute()
        except cancellations:
            attempt.status = RunStatus.CANCELLED
            attempt.finish(time.perf_counter() - started)
            raise
        except BaseException as e:  # noqa: BLE001 - any becomes a result
            if isinstance(e, KeyboardInterrupt) and not interrupted.is_watched:
                interrupted.fired = True
            attempt.fail(e)
        if interrupted.fired:  # also where the experiment made something else of it
            if interrupt == "preempts":
                raise KeyboardInterrupt
            attempt.status, attempt.error = RunStatus.CANCELLED, None
        return attempt.finish(time.perf_counter() - started)


def with_this_process(manifest: Manifest) -> Manifest:
    """Return a manifest that names this process and its machine as the ones that execute."""
    return dataclasses.replace(manifest, process=this_process(), environment=_environment())


@dataclass
class _Attempt:
    """One try at a run, and what it has come to so far."""

    spec: RunSpec
    folder: RunFolder
    emit: Emit
    warm: WarmExperiment
    hints: Hints
    secrets: tuple[str, ...]
    on_repositories: Callable[[Iterable[str]], None] | None
    status: RunStatus = RunStatus.SUCCESS
    error: RunError | None = None
    results: Any = None
    timings: dict[str, float] = field(default_factory=dict)
    metrics_file: TextIO | None = None  # open once something is logged
    kept_models: tuple[UsedRevision, ...] = ()  # loaded by the setup() of an earlier run

    def __post_init__(self) -> None:
        self.redactor = Redactor(self.secrets)
        tell = self.on_repositories
        heard = None if tell is None else lambda repository: tell((repository,))
        self.watch = CacheWatch(_cache_dir(), heard)

    def note_start(self) -> None:
        """Say in the manifest which process, on which machine, executes the run."""
        known = self.folder.read_manifest()
        manifest = with_this_process(known)
        if manifest != known:
            self.folder.write_manifest(manifest, self.redactor)

    def execute(self) -> None:
        """Run the experiment and keep what it returns."""
        self.note_start()
        with self.watch, self.context(), soft_timeout(self.spec.soft_timeout_s) as timer:
            value = self.call()
        self.keep(value)
        if timer.fired:
            raise SoftTimeout(f"the run had {self.spec.timeout_s:g} s")

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
        instance, is_new = self.warm.take(target, self.spec, config)
        if is_new:
            instance.setup()
            self.warm.models = tuple(
                dataclasses.replace(model, hit=True) for model in self.watch.used()
            )
        else:
            self.kept_models = self.warm.models
            if self.on_repositories is not None and self.kept_models:
                self.on_repositories(model.folder for model in self.kept_models)
        return instance

    def _announce_models(self, target: Callable[..., Any], config: Any) -> None:
        """Tell which models the config names; what a subprocess opens is not seen otherwise."""
        if self.on_repositories is None:
            return
        try:
            names = hub_models(target, config, self.spec.config)
            folders = [repo_folder(name.partition("@")[0]) for name in names]
        except Exception as e:  # noqa: BLE001 - the user's hook; elsewhere no run depends on it
            logger.warning("hub_models() failed: %s: %s", type(e).__name__, e)
            return
        if folders:
            self.on_repositories(folders)

    def keep(self, value: Any) -> None:
        """Encode what `run()` returned; raises for what can't be represented, keeps the rest."""
        self.results, problems = self._encode(value, "results")
        if problems:
            raise UnportableResultError(problems)

    def _encode(self, value: Any, name: str) -> tuple[Any, tuple[str, ...]]:
        return encode(value, self.folder.artifacts_dir, name, self.redactor.redact_text)

    def fail(self, error: BaseException) -> None:
        """Turn an exception into the run's error."""
        self.status = RunStatus.ERROR
        self.error = self.hints.describe(error, self.spec)

    def finish(self, total_s: float) -> RunResult:
        """Write result.json and return it as written; nothing else may keep it from that."""
        _try(self._note_models, None)
        if self.status is not RunStatus.SUCCESS:
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
                **_try(memory_and_gpu_use, {}),
            },
            run_dir=self.folder.path,
        )
        try:
            return self.folder.write_result(result, self.redactor)
        except OSError as e:  # a full disk: the outcome travels without a copy on disk
            if self.error is None:
                self.fail(e)
            result = dataclasses.replace(result, status=self.status, error=self.error)
            data = self.redactor.redact_json(result.to_dict())
            return RunResult.from_dict(data, run_dir=self.folder.path)

    def _note_models(self) -> None:
        """Name in the manifest the exact weights, and in the cache that they were used."""
        own = self.watch.used()
        seen = {(model.kind, model.repo_id, model.revision) for model in own}
        kept = [m for m in self.kept_models if (m.kind, m.repo_id, m.revision) not in seen]
        models = (*own, *kept)
        if not models:
            return
        record_uses(_cache_dir(), models)
        manifest = dataclasses.replace(
            self.folder.read_manifest(), cached_models=tuple(model.to_dict() for model in models)
        )
        self.folder.write_manifest(manifest, self.redactor)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Make `current_run()` answer while the experiment runs."""
        context = RunContext(
            run_id=self.spec.run_id,
            _output_dir=self.folder.artifacts_dir,
            _checkpoint_dir=self.folder.checkpoint_dir,
            seed=self.spec.seed,
            _log=self._log,
            _progress=self._progress,
        )
        set_current_run(context)
        try:
            yield
        finally:
            set_current_run(None)
            if self.metrics_file is not None:
                self.metrics_file.close()

    def _log(self, metrics: Mapping[str, Any], step: int | None) -> None:
        place = "metrics" if step is None else f"metrics/{step}"
        encoded, problems = self._encode(dict(metrics), place)
        if problems:
            raise UnportableResultError(problems)
        entry = {"step": step, "time": time.time(), "metrics": encoded}
        entry = self.redactor.redact_json(entry)
        if self.metrics_file is None:
            self.metrics_file = self.folder.open_metrics()
        self.metrics_file.write(json.dumps(entry, allow_nan=False) + "\n")
        self.emit({"event": "metrics", "step": step, "metrics": entry["metrics"]})

    def _progress(self, done: float, total: float | None, text: str) -> None:
        text = self.redactor.redact_text(text)
        self.emit({"event": "progress", "done": done, "total": total, "text": text})

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


@functools.cache
def _environment() -> dict[str, Any]:
    return describe_environment()


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
