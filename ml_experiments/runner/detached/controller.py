"""The controller of a sweep in a container on Modal, which goes on when the laptop is gone.

It does what the command does: its runs folder is on the container's disk, and is copied to
`.sweeps/SWEEP_ID` on the volume of runs every few seconds.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

from typing_extensions import override

from ml_experiments.backends.modal.detached.containers import RemoteCall
from ml_experiments.backends.modal.detached.volume_folder import Mirror, has_file, remove_file
from ml_experiments.errors import Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.sweeps.folder import SweepFolder, SweepSpec
from ml_experiments.runner.sweeps.sweep import resume_sweep
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.files import write_json_atomically
from ml_experiments.settings import runs_dir, update_environment

SWEEPS_FOLDER = ".sweeps"  # on the volume
STOP_FILE = ".stop"
_COPY_EVERY_S = 2.0

logger = logging.getLogger(__name__)


def control_sweep(request: dict[str, Any]) -> None:
    """Run a sweep; one that another container has begun is taken up again.

    Args:
        request: The `SweepSpec` as JSON, and the secrets in it.
    """
    spec = parse_record(SweepSpec, request["spec"])
    there = runs_dir() / SWEEPS_FOLDER / spec.sweep_id
    with tempfile.TemporaryDirectory(prefix="sweep-") as place:
        here = Path(place)
        # no record of the sweep or of a run may hold what the environment names as a secret
        hidden = {f"SWEEP_SECRET_{n}": value for n, value in enumerate(request["secrets"])}
        update_environment({}, {"ML_EXPERIMENTS_RUNS_DIR": place, **hidden})
        mirror = Mirror(here, there)
        mirror.restore()
        folder = SweepFolder(here / "sweeps" / spec.sweep_id)
        is_known = folder.path.is_dir()
        if not is_known:
            SweepFolder.create(here, spec, Redactor(secret_values()))
        # for machines that have not started it, which get it with the sweep
        write_json_atomically(
            folder.remote_file, dataclasses.asdict(RemoteCall.of_this_container())
        )
        ended, news = threading.Event(), threading.Event()
        copier = threading.Thread(target=_keep_copying, args=(mirror, folder, ended, news))
        copier.start()
        # points with secrets in them are not recognized in records, which have none
        asked = None if is_known and request["secrets"] else spec
        points = resume_sweep(folder, observer=_Notices(news), spec=asked)
        try:
            for _ in points:
                pass
        except Error as e:
            folder.note_stop(str(e))
            raise
        finally:
            points.close()  # type: ignore[attr-defined]
            ended.set()
            news.set()
            copier.join()
            mirror.copy()


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


def _keep_copying(
    mirror: Mirror, folder: SweepFolder, ended: threading.Event, news: threading.Event
) -> None:
    """Copy until the sweep has ended, and pass on the request to stop it."""
    stop = f"{SWEEPS_FOLDER}/{folder.path.name}/{STOP_FILE}"
    while not ended.is_set():
        news.wait(_COPY_EVERY_S)
        news.clear()
        try:
            mirror.copy()
            if has_file(stop):
                remove_file(stop)
                folder.stop_file.touch()
        except (Error, OSError, RuntimeError) as e:  # the next copy may succeed
            logger.warning("the sweep's folder was not copied to the volume: %s", e)
