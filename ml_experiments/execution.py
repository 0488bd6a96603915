"""Executes one run: the same function in a local worker process and in a Modal container.

It's the only place that catches `Exception`: whatever an experiment does, a `RunResult` comes
of it, and is on disk before it travels.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import logging
import platform
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TextIO

from ml_experiments import experiment as experiment_module
from ml_experiments.cache import CacheWatch, UsedRevision, record_uses, this_machine
from ml_experiments.config import call_function, config_for, secret_config_values
from ml_experiments.errors import SoftTimeout, UnportableResultError
from ml_experiments.experiment import Experiment, RunContext
from ml_experiments.experiment_path import load_experiment
from ml_experiments.failures import describe_failure
from ml_experiments.provenance import describe_environment
from ml_experiments.redaction import Redactor
from ml_experiments.resource_use import memory_and_gpu_use, reset_peak_memory
from ml_experiments.results import encode, from_json
from ml_experiments.run_folder import RunFolder, this_process
from ml_experiments.runs import RunError, RunResult, RunSpec, RunStatus
from ml_experiments.seeding import seed_everything
from ml_experiments.settings import secret_values

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Emit = Callable[[Event], None]


@dataclass
class WarmExperiment:
    """The experiment that a process keeps set up from one run to the next."""

    instance: Experiment | None = None
    key: str = ""
    models: tuple[UsedRevision, ...] = ()  # what its setup() loaded

    def take(self, target: type[Experiment], spec: RunSpec, config: Any) -> tuple[Experiment, bool]:
        """Return an instance with this config, and whether it still needs `setup()`."""
        key = _setup_key(target, spec)
        if self.instance is not None and self.key == key:
            self.instance.config = config
            return self.instance, False
        self.drop()
        self.instance, self.key = target(config), key
        return self.instance, True

    def drop(self) -> None:
        """Let go of the instance and the memory that it holds."""
        if self.instance is None:
            return
        self.instance, self.key, self.models = None, "", ()
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()


def execute_run(
    spec: RunSpec,
    folder: RunFolder,
    *,
    emit: Emit,
    warm: WarmExperiment,
    interrupt: Literal["cancels", "preempts"],
    secrets: Iterable[str] = (),
) -> RunResult:
    """Execute a run in this process, in its folder, and return what was written there.

    Args:
        spec: What to run.
        folder: The run folder; spec.json and manifest.json are there already.
        emit: Receives events (progress, metrics) while the experiment runs.
        warm: What this process kept from its last run.
        interrupt: What a KeyboardInterrupt means here: the user cancels the run, or the
            platform takes the machine away. A preempted run leaves no result, and the
            interrupt goes on, so that the platform starts the run again.
        secrets: Values that no record may hold, besides those that the environment and the
            config name as secrets.
    """
    started = time.perf_counter()
    attempt = _Attempt(spec, folder, emit, warm, (*secret_values(), *secrets))
    reset_peak_memory()
    try:
        attempt.note_start()
        with attempt.watch, attempt.context(), soft_timeout(spec.soft_timeout_s) as timer:
            value = attempt.call()
        attempt.keep(value)
        if timer.fired:
            raise SoftTimeout(f"the run had {spec.timeout_s:g} s")
    except KeyboardInterrupt:
        if interrupt == "preempts":
            raise
        attempt.status = RunStatus.CANCELLED
    except (Exception, SystemExit, SoftTimeout) as e:  # noqa: BLE001 - any becomes a result
        attempt.fail(e)
    except BaseException:
        attempt.status = RunStatus.CANCELLED
        attempt.finish(time.perf_counter() - started)
        raise
    return attempt.finish(time.perf_counter() - started)


@dataclass
class _Attempt:
    """One try at a run, and what it has come to so far."""

    spec: RunSpec
    folder: RunFolder
    emit: Emit
    warm: WarmExperiment
    secrets: tuple[str, ...]
    status: RunStatus = RunStatus.SUCCESS
    error: RunError | None = None
    results: Any = None
    timings: dict[str, float] = field(default_factory=dict)
    kept_models: tuple[UsedRevision, ...] = ()  # loaded by the setup() of an earlier run

    def __post_init__(self) -> None:
        self.redactor = Redactor(self.secrets)
        self.watch = CacheWatch(_cache_dir())

    def note_start(self) -> None:
        """Say in the manifest which process, on which machine, executes the run."""
        manifest = {
            **self.folder.read_manifest(),
            "process": this_process(),
            "environment": _environment(),
        }
        self.folder.write_manifest(manifest, self.redactor)

    def call(self) -> Any:
        """Import, set up and run the experiment."""
        spec = self.spec
        with self._timed("import_s"):
            target = load_experiment(spec.experiment, spec.import_paths)
            config = config_for(target, spec.config)
        self.redactor = Redactor((*self.secrets, *secret_config_values(config)))
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
        return instance

    def keep(self, value: Any) -> None:
        """Encode what `run()` returned; raises for what can't be represented, keeps the rest."""
        self.results, problems = encode(value, self.folder.artifacts_dir, "results")
        if problems:
            raise UnportableResultError(problems)

    def fail(self, error: BaseException) -> None:
        """Turn an exception into the run's error."""
        self.status = RunStatus.ERROR
        self.error = describe_failure(error, self.spec)

    def finish(self, total_s: float) -> RunResult:
        """Write result.json and return it as written."""
        self._note_models()
        if self.status is not RunStatus.SUCCESS:
            self.warm.drop()
        result = RunResult(
            run_id=self.spec.run_id,
            status=self.status,
            experiment_class=self.spec.experiment,
            results=from_json(self.results),
            error=self.error,
            artifacts=self.folder.list_artifacts(),
            timings={**self.timings, "total_s": total_s},
            environment={
                "python": platform.python_version(),
                "hostname": socket.gethostname(),
                **memory_and_gpu_use(),
            },
            run_dir=self.folder.path,
        )
        try:
            return self.folder.write_result(result, self.redactor)
        except OSError as e:  # a full disk: the outcome travels without a copy on disk
            self.fail(e)
            return dataclasses.replace(result, status=self.status, error=self.error)

    def _note_models(self) -> None:
        """Name in the manifest the exact weights, and in the cache that they were used."""
        own = self.watch.used()
        seen = {(model.kind, model.repo_id, model.revision) for model in own}
        kept = [m for m in self.kept_models if (m.kind, m.repo_id, m.revision) not in seen]
        models = (*own, *kept)
        if not models:
            return
        try:
            record_uses(_cache_dir(), models)
            manifest = {
                **self.folder.read_manifest(),
                "cached_models": [model.to_dict() for model in models],
            }
            self.folder.write_manifest(manifest, self.redactor)
        except OSError as e:  # a full disk or a read-only cache: the result matters more
            logger.warning("which models the run used was not recorded: %s", e)

    @contextmanager
    def context(self) -> Iterator[None]:
        """Make `current_run()` answer while the experiment runs."""
        with self.folder.metrics_file.open("a", encoding="utf-8", buffering=1) as metrics_file:
            context = RunContext(
                run_id=self.spec.run_id,
                output_dir=self.folder.artifacts_dir,
                checkpoint_dir=self.folder.checkpoint_dir,
                seed=self.spec.seed,
                _log=functools.partial(self._log, metrics_file),
                _progress=self._progress,
            )
            experiment_module.set_current_run(context)
            try:
                yield
            finally:
                experiment_module.set_current_run(None)

    def _log(self, file: TextIO, metrics: Mapping[str, Any], step: int | None) -> None:
        place = "metrics" if step is None else f"metrics/{step}"
        encoded, problems = encode(dict(metrics), self.folder.artifacts_dir, place)
        if problems:
            raise UnportableResultError(problems)
        entry = {"step": step, "time": time.time(), "metrics": encoded}
        entry = self.redactor.redact_json(entry)
        file.write(json.dumps(entry, allow_nan=False) + "\n")
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


@dataclass
class SoftTimer:
    """Whether the soft timeout has struck."""

    fired: bool = False


@contextmanager
def soft_timeout(seconds: float | None) -> Iterator[SoftTimer]:
    """Raise `SoftTimeout` in the block after so many seconds; only the main thread can be."""
    timer = SoftTimer()
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield timer
        return

    def strike(_signal: int, _frame: FrameType | None) -> None:
        timer.fired = True
        raise SoftTimeout(f"{seconds:g} s have passed; save now, the run is about to be ended")

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield timer
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@functools.cache
def _cache_dir() -> Path:
    return this_machine()


@functools.cache
def _environment() -> dict[str, Any]:
    return describe_environment()


def _setup_key(target: type[Experiment], spec: RunSpec) -> str:
    values = {**spec.config, "seed": spec.config.get("seed", spec.seed)}
    parts = {name: values.get(name) for name in target.setup_fields}
    return json.dumps([spec.experiment, spec.import_paths, parts], sort_keys=True)
