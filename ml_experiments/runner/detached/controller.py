"""What goes on in a container on Modal when the laptop is gone: a sweep, or a run's attempts.

It does what the command does: its runs folder is on the container's disk, and is copied to a folder
on the volume of runs every few seconds: `.sweeps/SWEEP_ID`, or `.runs/RUN_ID`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.backends.modal.detached.containers import SOURCE_PLACE, RemoteCall
from ml_experiments.backends.modal.detached.volume_folder import Mirror, read_file, remove_file
from ml_experiments.backends.modal.events import EventPrinter
from ml_experiments.backends.modal.mounts import AT_ONCE, CANCEL_FILE, CONTROLLED_FOLDER
from ml_experiments.backends.modal.remote_runs import put_end
from ml_experiments.backends.modal.request import RunRequest
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.display.observers import Notifier
from ml_experiments.runner.retry import go_on_with_attempts
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec
from ml_experiments.runner.sweeps.sweep import resume_sweep
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.spec import PreparedRun, RunSpec
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.settings import runs_dir, update_environment

SWEEPS_FOLDER = ".sweeps"  # on the volume
STOP_FILE = ".stop"
_COPY_EVERY_S = 2.0

logger = logging.getLogger(__name__)


def control_run(request: dict[str, Any]) -> dict[str, Any]:
    """Make the attempts at a run; those that another container has begun are taken up again.

    What the run prints and reports goes to the logs of this call, as if it executed here.

    Args:
        request: The `RunRequest` as JSON, and where to post the end.

    Returns:
        The result as JSON.
    """
    asked = parse_record(RunRequest, request["run"])
    run_id, spec = asked.spec.run_id, asked.spec
    # the volume has what a run leaves already
    with _restored(f"{CONTROLLED_FOLDER}/{run_id}", asked.secrets, ("artifacts",)) as mirror:
        secrets = secret_values()
        folder = RunFolder(mirror.source / run_id)
        if folder.path.is_dir():
            folder = RunFolder(folder.path, folder.read_manifest().attempt)
            spec = dataclasses.replace(spec, gpu=folder.read_spec().gpu)
        else:
            folder = RunFolder.create(mirror.source, spec, asked.manifest, Redactor(secrets))
        news = threading.Event()
        observer: Observer = _Attempts(news)
        if request["notify"] is not None:
            observer = Notifier(observer, request["notify"], Redactor(secrets))
        backend = ModalBackend(**spec.backend_options)
        backend.controller = RemoteCall.of_this_container().call_id
        handle = go_on_with_attempts(folder, PreparedRun(spec, secrets), backend, observer)

        def cancel(content: bytes) -> None:
            handle.cancel(at_once=content == AT_ONCE)

        cancel_file = f"{CONTROLLED_FOLDER}/{run_id}/{CANCEL_FILE}"
        try:
            with _copying(mirror, cancel_file, news, cancel):
                result = handle.result()
        except Error:
            if not folder.result_file.exists():  # it goes on, and this is tried again
                raise
            result = folder.read_result()
        except KeyboardInterrupt:  # Modal takes the container away, and another one goes on
            os._exit(1)  # no thread here may make another attempt meanwhile
        except BaseException:  # a person has ended this call in Modal's dashboard
            handle.cancel(at_once=True)
            raise
        put_end(folder)
        backend.close()
        return {**result.to_dict(), "run_dir": None}


def control_sweep(request: dict[str, Any]) -> None:
    """Run a sweep; one that another container has begun is taken up again.

    Args:
        request: The `SweepSpec` as JSON, and the secrets in it.
    """
    spec = parse_record(SweepSpec, request["spec"])
    there = f"{SWEEPS_FOLDER}/{spec.sweep_id}"
    with _restored(there, request["secrets"]) as mirror:
        folder = SweepFolder(mirror.source / "sweeps" / spec.sweep_id)
        is_known = folder.path.is_dir()
        if not is_known:
            SweepFolder.create(mirror.source, spec, Redactor(secret_values()))
        # for machines that have not started it, which get it with the sweep
        write_json_atomically(
            folder.remote_file, dataclasses.asdict(RemoteCall.of_this_container())
        )
        news = threading.Event()
        # points with secrets in them are not recognized in records, which have none
        asked = None if is_known and request["secrets"] else spec
        points = resume_sweep(folder, observer=_Notices(news), spec=asked)

        def stop(_content: bytes) -> None:
            folder.stop_file.touch()

        with _copying(mirror, f"{there}/{STOP_FILE}", news, stop):
            try:
                for _ in points:
                    pass
            except Error as e:
                folder.note_stop(str(e))
                raise
            finally:
                points.close()  # type: ignore[attr-defined]


def source_here(spec: RunSpec) -> RunSpec:
    """Return the spec of a run with the place where a controller has the user's modules.

    Args:
        spec: With the class path below that place; see `remote_path`.
    """
    path = spec.experiment
    path = f"{SOURCE_PLACE}/{path}" if ".py:" in path else path
    return dataclasses.replace(spec, experiment=path, import_paths=(SOURCE_PLACE,))


class _Notices(Observer):
    """Lets a run be stored once it is accepted, so that no other container starts it again."""

    def __init__(self, news: threading.Event) -> None:
        self._news = news

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        self._news.set()

    @override
    def started(self, spec: RunSpec) -> None:
        self._news.set()


class _Attempts(EventPrinter):
    """Prints what the attempts at a run print and report, and lets each be stored, too."""

    def __init__(self, news: threading.Event) -> None:
        super().__init__()
        self._news = news

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        self._news.set()
        super().notice(spec, text)


@contextlib.contextmanager
def _restored(there: str, secrets: Iterable[str], left_out: Sequence[str] = ()) -> Iterator[Mirror]:
    """Make a runs folder on this container's disk, as another one has left it on the volume.

    Args:
        there: The folder on the volume that it is going to be copied to.
        secrets: What no record may hold.
        left_out: See `Mirror`.
    """
    with tempfile.TemporaryDirectory(prefix="runs-") as place:
        mirror = Mirror(Path(place), runs_dir() / there, left_out)
        # no record of a sweep or of a run may hold what the environment names as a secret
        hidden = {f"CONTROLLER_SECRET_{n}": value for n, value in enumerate(secrets)}
        update_environment({}, {"ML_EXPERIMENTS_RUNS_DIR": place, **hidden})
        mirror.restore()
        yield mirror


@contextlib.contextmanager
def _copying(
    mirror: Mirror, request: str, news: threading.Event, end: Callable[[bytes], object]
) -> Iterator[None]:
    """Copy to the volume for a block, again and again, and look there for a request to end.

    Args:
        mirror: What is copied.
        request: The file on the volume that is the request.
        news: Set when there is something to copy at once.
        end: Receives the content of the request.
    """
    is_over = threading.Event()

    def keep_copying() -> None:
        while not is_over.is_set():
            try:
                mirror.copy()
                content = read_file(request)
                if content is not None:
                    remove_file(request)
                    end(content)
            except (Error, OSError, RuntimeError) as e:  # the next copy may succeed
                logger.warning("nothing was copied to the volume: %s", e)
            news.wait(_COPY_EVERY_S)
            news.clear()

    copier = threading.Thread(target=keep_copying, daemon=True, name="copier")
    copier.start()
    try:
        yield
    finally:
        is_over.set()
        news.set()
        copier.join()
        mirror.copy()
