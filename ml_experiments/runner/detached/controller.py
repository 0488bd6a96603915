"""What goes on in a container on Modal when the laptop is gone: a sweep, or a run's attempts.

It does what the command does: its runs folder is on the container's disk, and is copied to a folder
on the volume of runs every few seconds: `.sweeps/SWEEP_ID`, or `.runs/RUN_ID`. So is the ledger,
in which it reserves what the machine that has started it has reserved for all attempts or points.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import override

from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.backends.modal.detached.containers import (
    SOURCE_PLACE,
    RemoteCall,
    most_usd_per_s,
)
from ml_experiments.backends.modal.detached.volume_folder import Mirror, read_file, remove_file
from ml_experiments.backends.modal.events import EventPrinter
from ml_experiments.backends.modal.mounts import AT_ONCE, CANCEL_FILE, CONTROLLED_FOLDER
from ml_experiments.backends.modal.remote_runs import put_end
from ml_experiments.backends.modal.request import RunRequest
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.budget.reserving import Budget, note_spent, open_ledger
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
LEDGER_FILE = "ledger.sqlite3"
_COPY_EVERY_S = 2.0

logger = logging.getLogger(__name__)


def control_run(request: dict[str, Any]) -> dict[str, Any]:
    """Make the attempts at a run; those that another container has begun are taken up again.

    What the run prints and reports goes to the logs of this call, as if it executed here.

    Args:
        request: The `RunRequest` as JSON, where to post the end, and what the attempts may cost.

    Returns:
        The result as JSON.
    """
    asked = parse_record(RunRequest, request["run"])
    run_id, spec = asked.spec.run_id, asked.spec
    # the volume has what a run leaves already
    there = f"{CONTROLLED_FOLDER}/{run_id}"
    with _restored(there, asked.secrets, Path(LEDGER_FILE), ("artifacts",)) as store:
        secrets, runs_here = secret_values(), store.mirror.source
        folder = RunFolder(runs_here / run_id)
        if folder.path.is_dir():
            folder = RunFolder(folder.path, folder.read_manifest().attempt)
            spec = dataclasses.replace(spec, gpu=folder.read_spec().gpu)
        else:
            folder = RunFolder.create(runs_here, spec, asked.manifest, Redactor(secrets))
        allowed_usd = request["allowed_usd"]
        budget = None if allowed_usd is None else Budget.of_run(run_id, allowed_usd)
        # stored before it starts: whoever takes over doesn't start it again
        observer: Observer = _Attempts(store.save)
        if request["notify"] is not None:
            observer = Notifier(observer, request["notify"], Redactor(secrets))
        backend = ModalBackend(**spec.backend_options)
        backend.controller = RemoteCall.of_this_container().call_id
        prepared = PreparedRun(spec, secrets, budget=budget)
        handle = go_on_with_attempts(folder, prepared, backend, observer)

        def cancel(content: bytes) -> None:
            handle.cancel(at_once=content == AT_ONCE)

        cancel_file = f"{there}/{CANCEL_FILE}"
        try:
            with store.copying(cancel_file, cancel):
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
        cost = {**result.cost, "controller_usd": _cost_since(asked.spec.created_at)}
        result = handle.folder.write_result(
            dataclasses.replace(result, cost=cost), Redactor(secrets)
        )
        put_end(handle.folder)
        backend.close()
        return {**result.to_dict(), "run_dir": None}


def control_sweep(request: dict[str, Any]) -> None:
    """Run a sweep; one that another container has begun is taken up again.

    Args:
        request: The `SweepSpec` as JSON, the secrets in it, what the points may cost, whether
            only those run that have failed, and when this was asked for.
    """
    spec = parse_record(SweepSpec, request["spec"])
    there = f"{SWEEPS_FOLDER}/{spec.sweep_id}"
    ledger_copy = Path("sweeps", spec.sweep_id, LEDGER_FILE)
    with _restored(there, request["secrets"], ledger_copy) as store:
        runs_here = store.mirror.source
        folder = SweepFolder(runs_here / "sweeps" / spec.sweep_id)
        is_taken_over = folder.remote_file.exists()
        if not folder.path.is_dir():
            SweepFolder.create(runs_here, spec, Redactor(secret_values()))
        # for machines that have not started it, which get it with the sweep
        write_json_atomically(
            folder.remote_file, dataclasses.asdict(RemoteCall.of_this_container())
        )
        # points with secrets in them are not recognized in records, which have none
        asked = folder.read_spec() if is_taken_over and request["secrets"] else spec
        asked = dataclasses.replace(asked, allowed_usd=request["allowed_usd"])
        points = resume_sweep(
            folder,
            observer=_Notices(store),
            failed_only=request["failed_only"],
            spec=asked,
        )

        def stop(_content: bytes) -> None:
            folder.stop_file.touch()

        with store.copying(f"{there}/{STOP_FILE}", stop):
            try:
                for _ in points:
                    pass
            except Error as e:  # no other container would get further
                folder.note_stop(str(e))
                logger.error("the sweep has stopped: %s", e)
            finally:
                points.close()  # type: ignore[attr-defined]
            _note_spent(folder, spec, request["began_at"])


def _note_spent(folder: SweepFolder, spec: SweepSpec, began_at: str) -> None:
    spent_usd = open_ledger().spent_usd(spec.budget.scope)
    note_spent(folder.path, spent_usd + _cost_since(began_at))


def source_here(spec: RunSpec) -> RunSpec:
    """Return the spec of a run with the place where a controller has the user's modules.

    Args:
        spec: With the class path below that place; see `remote_path`.
    """
    path = spec.experiment
    path = f"{SOURCE_PLACE}/{path}" if ".py:" in path else path
    return dataclasses.replace(spec, experiment=path, import_paths=(SOURCE_PLACE,))


class _Notices(Observer):
    """Lets a run be stored before it starts, so that no other container starts it again."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        self._store.save(spec.run_id)

    @override
    def started(self, spec: RunSpec) -> None:
        self._store.news.set()


class _Attempts(EventPrinter):
    """Prints what the attempts at a run print and report, and lets each be stored, too."""

    def __init__(self, store: Callable[[], object]) -> None:
        super().__init__()
        self._store = store

    @override
    def notice(self, spec: RunSpec, text: str) -> None:
        self._store()
        super().notice(spec, text)


class Store:
    """Copies a runs folder on this container's disk, and the ledger, to the volume.

    Args:
        mirror: Copies the folder.
        ledger_copy: Where in the folder the copy of the ledger is.
    """

    def __init__(self, mirror: Mirror, ledger_copy: Path) -> None:
        self.mirror = mirror
        self.news = threading.Event()  # there is something to copy at once
        self._ledger_copy = mirror.source / ledger_copy

    def restore(self) -> None:
        """Copy all that is there back, for a container that goes on with another one's work."""
        self.mirror.restore()
        if self._ledger_copy.exists():
            ledger = open_ledger()
            ledger.file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._ledger_copy, ledger.file)
            ledger.move_runs(self.mirror.source)

    def save(self, run_id: str | None = None) -> None:
        """Copy what has changed.

        Args:
            run_id: Of all runs, the only one that is looked at; there may be many.
        """
        if self._ledger_copy.parent.is_dir():
            open_ledger().copy_to(self._ledger_copy)
        ledger_folder = self._ledger_copy.parent.relative_to(self.mirror.source)
        self.mirror.copy(() if run_id is None else (Path(run_id), ledger_folder))

    @contextlib.contextmanager
    def copying(self, request: str, end: Callable[[bytes], object]) -> Iterator[None]:
        """Copy for a block, again and again, and look on the volume for a request to end.

        Args:
            request: The file on the volume that is the request.
            end: Receives the content of the request.
        """
        is_over = threading.Event()

        def keep_copying() -> None:
            while not is_over.is_set():
                try:
                    self.save()
                    content = read_file(request)
                    if content is not None:
                        remove_file(request)
                        end(content)
                except (Error, OSError, RuntimeError) as e:  # the next copy may succeed
                    logger.warning("nothing was copied to the volume: %s", e)
                self.news.wait(_COPY_EVERY_S)
                self.news.clear()

        copier = threading.Thread(target=keep_copying, daemon=True, name="copier")
        copier.start()
        try:
            yield
        finally:
            is_over.set()
            self.news.set()
            copier.join()
            self.save()


@contextlib.contextmanager
def _restored(
    there: str, secrets: Iterable[str], ledger_copy: Path, left_out: Sequence[str] = ()
) -> Iterator[Store]:
    """Make a runs folder on this container's disk, as another one has left it on the volume.

    Args:
        there: The folder on the volume that it is going to be copied to.
        secrets: What no record may hold.
        ledger_copy: See `Store`.
        left_out: See `Mirror`.
    """
    with tempfile.TemporaryDirectory(prefix="runs-") as place:
        store = Store(Mirror(Path(place), runs_dir() / there, left_out), ledger_copy)
        # no record of a sweep or of a run may hold what the environment names as a secret
        hidden = {f"CONTROLLER_SECRET_{n}": value for n, value in enumerate(secrets)}
        places = {
            "ML_EXPERIMENTS_RUNS_DIR": place,
            "ML_EXPERIMENTS_STATE_DIR": f"{place}/.state",  # the ledger is copied as a whole
        }
        update_environment({}, {**places, **hidden})
        store.restore()
        yield store


def _cost_since(began_at: str) -> float:
    """Return what this container, and those before it, cost at most since a run was asked for."""
    seconds = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(began_at)
    return seconds.total_seconds() * most_usd_per_s()
