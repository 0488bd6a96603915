"""Runs experiments: preflight, an open run folder, a backend, and the result."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Unpack

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend, FinishedRunHandle, RunHandle
from ml_experiments.errors import BackendError, ConfigError, RunExistsError
from ml_experiments.execution.observer import Observer
from ml_experiments.experiment.by_value import FILE_NAME
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import (
    describe_limit,
    release,
    reserve,
    settle_at_end,
)
from ml_experiments.runner.display.observers import DISPLAY, Notifier, guarded
from ml_experiments.runner.options import RunOptions
from ml_experiments.runner.prepare import prefetch_models, prepare_run
from ml_experiments.runner.retry import submit_with_retries
from ml_experiments.runner.reuse.existing import ExistingRunHandle, find_existing
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import Heartbeat
from ml_experiments.runs.index.journal import recorded
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import PreparedRun
from ml_experiments.settings import runs_dir as default_runs_dir
from ml_experiments.settings import working_dir

_HEARTBEAT = Heartbeat()


def run_experiment(
    experiment: Callable[..., Any] | str,
    config: Mapping[str, Any] | None = None,
    *,
    backend: Backend | str = "local",
    runs_dir: Path | None = None,
    observer: Observer | None = None,
    backend_options: Mapping[str, Any] | None = None,
    **options: Unpack[RunOptions],
) -> RunResult:
    """Run an experiment and wait for its result.

    Example:
        ```python
        from ml_experiments import run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            result = run_experiment(square, {"n": 3}, timeout_s=60)
            print(result.status, result.results)  # success 9
        ```

    Args:
        experiment: A class with `run()`, a function, or the import path of one.
        config: Its config; validated by the experiment's own `Config`.
        backend: A name, or an open backend, whose warm workers then serve many runs.
        runs_dir: Where the run folder goes; by default what the settings say.
        observer: Receives logs, progress and metrics live. By default they are shown as the
            command shows them: live on a terminal, else as lines; `Observer()` shows nothing.
        backend_options: Passed to the backend that a name stands for, such as `max_workers`.
        **options: See `RunOptions`.

    Raises:
        Error: If the run could not be started: a bad class path, config, GPU type, backend.
            What happens in the run itself is in the result.
    """
    if isinstance(backend, str):
        with open_backend(backend, **(backend_options or {})) as opened:
            return run_experiment(
                experiment,
                config,
                backend=opened,
                runs_dir=runs_dir,
                observer=observer,
                **options,
            )
    if backend_options:
        raise ConfigError("backend_options go with a backend's name; this one is open already")
    handle = submit_experiment(
        experiment, config, backend=backend, runs_dir=runs_dir, observer=observer, **options
    )
    return wait_for(handle)


def submit_experiment(
    experiment: Callable[..., Any] | str,
    config: Mapping[str, Any] | None = None,
    *,
    backend: Backend,
    runs_dir: Path | None = None,
    observer: Observer | None = None,
    **options: Unpack[RunOptions],
) -> RunHandle:
    """Start a run on an open backend and return at once; see `run_experiment`.

    Example:
        ```python
        from ml_experiments import LocalBackend, submit_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with LocalBackend(max_workers=2) as backend:
                first = submit_experiment(square, {"n": 3}, backend=backend)
                second = submit_experiment(square, {"n": 4}, backend=backend)
                print(first.result().results, second.result().results)  # 9 16
        ```
    """
    guarded(observer)  # what is no observer is refused before anything starts
    with ThreadPoolExecutor(1) as beside:  # git takes as long as the preflight
        code = beside.submit(describe_code, working_dir())
        prepared = prepare_run(experiment, config, backend=backend, **options)
    earlier, prepared = take_earlier(prepared, backend, runs_dir, observer)
    if earlier is not None:
        return earlier
    if options.get("prefetch"):
        prefetch_models(prepared, backend=backend, observer=observer)
    return submit_with_code(
        prepared, code.result(), backend=backend, runs_dir=runs_dir, observer=observer
    )


def submit_run(
    prepared: PreparedRun,
    *,
    backend: Backend,
    runs_dir: Path | None = None,
    observer: Observer | None = None,
) -> RunHandle:
    """Open the run folder and hand a prepared run to its backend.

    Example:
        ```python
        from ml_experiments import LocalBackend, prepare_run, submit_run

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with LocalBackend() as backend:
                prepared = prepare_run(square, {"n": 3}, backend=backend)
                print(submit_run(prepared, backend=backend).result().results)  # 9
        ```
    """
    earlier, prepared = take_earlier(prepared, backend, runs_dir, observer)
    if earlier is not None:
        return earlier
    return submit_with_code(
        prepared,
        describe_code(working_dir()),
        backend=backend,
        runs_dir=runs_dir,
        observer=observer,
    )


def take_earlier(
    prepared: PreparedRun,
    backend: Backend,
    runs_dir: Path | None = None,
    observer: Observer | None = None,
) -> tuple[RunHandle | None, PreparedRun]:
    """Return the run that is taken for a prepared one: that of its id, or one to reuse.

    Returns:
        A handle of that run, or None, and the prepared run, for which no earlier one to reuse has
        to be looked for again.

    Raises:
        ConfigError: If the run of its id is another one.
    """
    if not prepared.has_own_id and not prepared.reuses:
        return None, prepared
    place = Path(runs_dir or default_runs_dir()).expanduser().resolve()
    existing = find_existing(prepared, backend, place) if prepared.has_own_id else None
    if existing is not None:
        return _follow_existing(prepared, existing, backend, observer), prepared
    if not prepared.reuses:
        return None, prepared
    from ml_experiments.runner.reuse.finding import find_earlier  # brings SQLite along

    search = find_earlier(prepared, backend, place)
    if search.found is None:
        guarded(observer).notice(prepared.spec, f"nothing to reuse: {search}")
        return None, dataclasses.replace(prepared, reuses=False)
    if prepared.template is not None:
        backend.templates.release(prepared.template)
    spec, result = search.found.read_spec(), search.found.read_result()
    result = dataclasses.replace(result, is_reused=True)
    watching = _watching(prepared, observer)
    watching.notice(prepared.spec, f"reused, for $0: {search}; nothing was started")
    watching.finished(spec, result)
    return FinishedRunHandle(spec, search.found, result), prepared


def _follow_existing(
    prepared: PreparedRun, folder: RunFolder, backend: Backend, observer: Observer | None
) -> RunHandle:
    if prepared.template is not None:
        backend.templates.release(prepared.template)
    watching = guarded(observer)
    outcome = folder.outcome()
    state = f"it has ended with status {outcome.status}"
    if not outcome.status.has_ended:
        state = "it goes on"
    watching.notice(
        prepared.spec, f"run {prepared.spec.run_id} exists, and none was started: {state}"
    )
    return ExistingRunHandle(folder, backend, watching)


def submit_with_code(
    prepared: PreparedRun,
    code: dict[str, Any],
    *,
    backend: Backend,
    runs_dir: Path | None = None,
    observer: Observer | None = None,
) -> RunHandle:
    """Start a run that was prepared, once `take_earlier` has found none to take instead.

    Args:
        prepared: The run.
        code: The git state of its code.
        backend: Where it executes.
        runs_dir: Where its folder is made; the default if None.
        observer: Receives its events.
    """
    # absolute: the experiment may change the working folder
    place = Path(runs_dir or default_runs_dir()).expanduser().resolve()
    if prepared.reservation is None:
        asked = prepared
        [prepared] = reserve([asked], backend, place, budget=asked.budget)
        limit = describe_limit(asked, prepared)
        if limit is not None:
            guarded(observer).notice(prepared.spec, limit)
    try:
        handle = _submit_reserved(prepared, code, backend, place, observer)
    except RunExistsError:  # another process was faster
        release(prepared.reservation)
        existing = find_existing(prepared, backend, place) if prepared.has_own_id else None
        if existing is None:
            raise
        return _follow_existing(prepared, existing, backend, observer)
    except BaseException:
        release(prepared.reservation)
        raise
    keep_alive(handle)
    return handle


def _submit_reserved(
    prepared: PreparedRun,
    code: dict[str, Any],
    backend: Backend,
    place: Path,
    observer: Observer | None,
) -> RunHandle:
    prepared, folder = open_run_folder(prepared, code, place)

    def submit(one_run: Observer) -> RunHandle:
        attempt = backend.submit(prepared, folder, one_run)
        settle_at_end(attempt, prepared.reservation)
        return attempt

    watching = _watching(prepared, observer)
    try:
        return submit_with_retries(submit, prepared, folder, backend, watching)
    except RunExistsError:  # elsewhere: its folder comes from there
        discard(folder)
        raise


def open_run_folder(
    prepared: PreparedRun, code: dict[str, Any], place: Path
) -> tuple[PreparedRun, RunFolder]:
    """Make the folder of a prepared run; return both, for an experiment of a notebook moves there.

    Raises:
        RunExistsError: If there is one.
    """
    spec = prepared.spec
    try:
        client = this_process()
    except OSError as e:  # too many open files
        raise BackendError(f"the run can't be started: {e}") from e
    manifest = Manifest(
        run_id=spec.run_id,
        seed=spec.seed,
        began_at=spec.created_at,
        code=code,
        client=client,
        fingerprint=prepared.fingerprint,
    )
    redactor = Redactor(prepared.secrets)
    location, _, name = spec.experiment.rpartition(":")
    source = Path(location) if Path(location).name == FILE_NAME else None
    if source is not None:  # of a notebook: the run folder keeps it
        kept = place / spec.run_id
        paths = (str(kept), *spec.import_paths[1:])
        experiment = f"{kept / FILE_NAME}:{name}"
        spec = dataclasses.replace(spec, experiment=experiment, import_paths=paths)
        prepared = dataclasses.replace(prepared, spec=spec)
    with recorded(place, spec.run_id, is_listed=True):
        return prepared, RunFolder.create(place, spec, manifest, redactor, source)


def discard(folder: RunFolder) -> None:
    """Remove the folder of a run that was not started after all."""
    with recorded(folder.path.parent, folder.path.name, is_listed=True):
        shutil.rmtree(folder.path)


def _watching(prepared: PreparedRun, observer: Observer | None) -> Observer:
    """Return what receives the events of a run."""
    watching = guarded(observer)
    if prepared.notify is None:
        return watching
    return Notifier(watching, prepared.notify, Redactor(prepared.secrets))


def keep_alive(handle: RunHandle) -> None:
    """Show signs of life in a run's folder until it has ended, and pass on requests to cancel."""
    folder = handle.folder.path
    _HEARTBEAT.add(folder, lambda at_once: handle.cancel(at_once=at_once))
    handle.when_ended(lambda: _HEARTBEAT.remove(folder))


def wait_for(handle: RunHandle) -> RunResult:
    """Return a run's result; Ctrl-C cancels the run, a second one ends it at once.

    Raises:
        KeyboardInterrupt: After the run was cancelled; its folder has the status `cancelled`. A
            run that another process has started goes on.
    """
    try:
        return handle.result()
    except KeyboardInterrupt:
        if isinstance(handle, ExistingRunHandle):
            raise
        handle.cancel()
        try:
            handle.result()
        except KeyboardInterrupt:
            handle.cancel(at_once=True)
            handle.result()
        raise
    finally:
        DISPLAY.forget(handle.run_id)  # a run whose outcome is lost sends no `finished`
