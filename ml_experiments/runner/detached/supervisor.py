"""Runs and sweeps that outlive the terminal: a supervisor process sees each to its end.

The supervisor receives the request as a pickle on its standard input, for a config may hold secrets
that no file may; it answers with one line of JSON once the run is accepted, and then lets go of the
terminal. If it is killed, its runs end as those of any client do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import FinishedRunHandle, RunHandle
from ml_experiments.backends.forecast import Forecast
from ml_experiments.errors import BackendError, BudgetError, ConfigError, Error, RunExistsError
from ml_experiments.execution.worker.messages import error_of, problem_of
from ml_experiments.execution.worker.starting import command_for, current_search_path
from ml_experiments.runner.budget.reserving import above_limit, refuse_above_asking
from ml_experiments.runner.detached.on_modal import can_run_be_on_modal, start_run_on_modal
from ml_experiments.runner.display.observers import Notices
from ml_experiments.runner.prepare import prefetch_models, prepare_run
from ml_experiments.runner.reuse.existing import ExistingRunHandle
from ml_experiments.runner.run import submit_run, take_earlier, wait_for
from ml_experiments.runner.sweeps.controller import Progress
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec
from ml_experiments.runner.sweeps.sweep import extended, resume_sweep, start_sweep
from ml_experiments.runs.folder import RunFolder
from ml_experiments.settings import runs_dir

_LOOK_EVERY_S = 0.05


def start_detached(
    experiment: str,
    config: Mapping[str, Any],
    *,
    backend: str,
    backend_options: Mapping[str, Any],
    options: Mapping[str, Any],
    is_approved: bool = False,
) -> tuple[RunFolder, bool]:
    """Start a run that goes on when this process ends; return once it is accepted.

    Args:
        experiment: The class path.
        config: Its config.
        backend: The backend's name.
        backend_options: What it is opened with.
        options: Those of the run; see `RunOptions`.
        is_approved: Whether it may cost more than the setting `ask_above`.

    Returns:
        Its folder; and whether it is new, and not the folder of a run that there was before.

    Raises:
        Error: If the run could not work.
        BackendError: If the supervisor ends before the run is accepted.
    """
    request = {
        "experiment": experiment,
        "config": config,
        "backend": backend,
        "backend_options": dict(backend_options),
        "options": dict(options),
        "is_approved": is_approved,
    }
    answer = _start_supervisor(request)
    return RunFolder(Path(answer["folder"])), answer["is_new"]


@dataclass(frozen=True)
class SweepRequest:
    """A sweep that a supervisor is to start, or to take up again.

    Attributes:
        spec: The sweep to start; None to take one up again.
        folder: The sweep to take up again.
        failed_only: Whether to run only the points of it that have failed.
        axes: What to add to it, as on the command line.
        trials: How many points its sampler suggests in all; None for as many as before.
        max_cost: The most that all of its points may cost; None for as much as before.
        prefetch: Whether to download the models that the points name first.
        is_approved: Whether it may cost more than the setting `ask_above`.
    """

    spec: SweepSpec | None = None
    folder: SweepFolder | None = None
    failed_only: bool = False
    axes: tuple[str, ...] = ()
    trials: int | None = None
    max_cost: float | None = None
    prefetch: bool = False
    is_approved: bool = False

    @property
    def change(self) -> Callable[[SweepSpec], SweepSpec] | None:
        """What extends the sweep; None if it is only taken up again."""
        if not self.axes and self.trials is None and self.max_cost is None:
            return None
        return lambda spec: extended(spec, self.axes, self.trials, self.max_cost)


def start_detached_sweep(request: SweepRequest) -> SweepFolder:
    """Start a sweep that goes on when this process ends; return its folder once it has begun.

    Raises:
        Error: If a point is not valid, or another process runs the sweep.
        BackendError: If the supervisor ends before the sweep has begun.
    """
    return SweepFolder(Path(_start_supervisor(request)["folder"]))


def _start_supervisor(request: Any) -> dict[str, Any]:
    """Start a supervisor; return what it has answered: the folder of what it has accepted."""
    try:
        pickled = pickle.dumps(request)
    except Exception as e:
        raise ConfigError(f"the config can't travel to the supervisor: {e}") from e
    search_path = current_search_path()
    supervisor = subprocess.Popen(
        command_for(__name__, search_path),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a terminal that closes ends its own session only
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    try:
        with contextlib.suppress(BrokenPipeError), supervisor.stdin as pipe:
            pipe.write(pickled)
        line = supervisor.stdout.readline()
    except BaseException:  # an interrupt before the run is accepted
        supervisor.terminate()
        raise
    if not line:
        raise BackendError(f"the supervisor ended with code {supervisor.wait()}")
    answer = json.loads(line)
    if "problem" in answer:
        raise error_of(answer["problem"])
    supervisor.returncode = 0  # this process does not wait for it
    return dict(answer)


def main() -> None:
    """Start the run or the sweep that standard input asks for, and see it to its end."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the run as Ctrl-C does
    request = pickle.loads(sys.stdin.buffer.read())  # from the client that started this process
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        if isinstance(request, SweepRequest):
            _see_sweep_through(request, answer)
            return
        with open_backend(request["backend"], **request["backend_options"]) as backend:
            options, observer = request["options"], Notices()
            prepared = prepare_run(
                request["experiment"], request["config"], backend=backend, **options
            )
            earlier, prepared = take_earlier(prepared, backend, observer=observer)
            if earlier is None:
                if not request["is_approved"]:
                    refuse_above_asking(prepared, backend, runs_dir())
                if options.get("prefetch"):
                    prefetch_models(prepared, backend=backend, observer=observer)
                if can_run_be_on_modal(prepared.spec):
                    try:
                        say = functools.partial(observer.notice, prepared.spec)
                        _accept(answer, start_run_on_modal(prepared, say).path)
                        return
                    except RunExistsError:  # another process was faster
                        earlier, prepared = take_earlier(prepared, backend, observer=observer)
            handle = earlier or submit_run(prepared, backend=backend, observer=observer)
            _wait_until_accepted(handle)
            is_new = not isinstance(handle, ExistingRunHandle | FinishedRunHandle)
            _accept(answer, handle.folder.path, is_new=is_new)
            _let_go_of_terminal(Path(os.devnull))
            if not is_new:
                os._exit(0)  # another process sees it through, if it goes on
            with contextlib.suppress(KeyboardInterrupt):
                wait_for(handle)
    except Error as e:
        if answer.closed:  # the run's folder says what has become of it
            sys.exit(1)
        answer.write(json.dumps({"problem": problem_of(e)}) + "\n")
        answer.close()


def _see_sweep_through(request: SweepRequest, answer: TextIO) -> None:
    """Start a sweep or take one up again; what goes wrong later is in the log in its folder."""

    def begin(folder: SweepFolder, _spec: SweepSpec, _progress: Progress) -> None:
        _accept(answer, folder.path)
        _let_go_of_terminal(folder.log_file)

    def approve(forecast: Forecast) -> None:
        above = None if request.is_approved else above_limit(forecast, "the sweep")
        if above is not None:
            raise BudgetError(f"{above}, and nobody was asked; --yes starts it")

    if request.spec is not None:
        points = start_sweep(
            request.spec,
            runs_dir=None,
            observer=Notices(),
            prefetch=request.prefetch,
            approve=approve,
            on_begin=begin,
        )
    else:
        assert request.folder is not None
        points = resume_sweep(
            request.folder,
            observer=Notices(),
            failed_only=request.failed_only,
            change=request.change,
            approve=approve,
            on_begin=begin,
        )
    with contextlib.suppress(KeyboardInterrupt):
        for _ in points:
            pass


def _accept(answer: TextIO, folder: Path, *, is_new: bool = True) -> None:
    answer.write(json.dumps({"folder": str(folder), "is_new": is_new}) + "\n")
    answer.close()


def _wait_until_accepted(handle: RunHandle) -> None:
    """Wait until the run can be found by others: on Modal, that is when its call is recorded."""
    while handle.spec.backend == "modal" and not handle.done():
        if handle.folder.read_manifest().call_id is not None:
            return
        time.sleep(_LOOK_EVERY_S)
    if handle.done():
        handle.result()  # raises what kept it from being accepted


def _let_go_of_terminal(log: Path) -> None:
    nowhere = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for standard, source in ((0, nowhere), (1, file), (2, file)):
        os.dup2(source, standard)
    os.close(nowhere)
    os.close(file)
