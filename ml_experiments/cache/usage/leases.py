"""Which runs in other containers use which repositories: one small file on the volume per run.

A container sees what others have committed to the volume, but not their processes. So a run
leaves a lease there for as long as it goes on, and a deletion keeps what a lease names. The
lease of a container that was killed stays: `sweep_leases()` removes it before a deletion is
planned, once Modal reports the run as ended.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ml_experiments.cache.disk import list_files, read_json_object, remove_file
from ml_experiments.cache.layout import CacheLayout, find_layout, is_without_links
from ml_experiments.serialization.files import write_json_atomically

_MAX_WAIT_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lease:
    """What one run uses.

    Attributes:
        holder: Opaque id of the owner; on Modal, the id of the function call.
        since: Unix time in seconds when the run began.
        folders: The repositories, as `models--org--name`.
    """

    run_id: str
    holder: str
    since: float
    folders: tuple[str, ...]


def read_leases(layout: CacheLayout) -> dict[Path, Lease]:
    """Return the leases of a cache by their files; what is not readable as one is left out."""
    if layout.leases is None or not is_without_links(layout.leases, layout.root):
        return {}
    leases: dict[Path, Lease] = {}
    for file in list_files(str(layout.leases)):
        match read_json_object(file):
            case {
                "run_id": str(run_id),
                "holder": str(holder),
                "since": int() | float() as since,
                "folders": [*folders],
            }:
                leases[Path(file)] = Lease(run_id, holder, since, tuple(map(str, folders)))
    return leases


def sweep_leases(cache_dir: str | Path, goes_on: Callable[[Lease], bool]) -> None:
    """Remove the leases of runs that have ended without doing so themselves.

    Args:
        cache_dir: The cache folder.
        goes_on: Whether the run of a lease still goes on.
    """
    for file, lease in read_leases(find_layout(cache_dir)).items():
        if not goes_on(lease):
            remove_file(str(file))


class LeaseKeeper:
    """Keeps the lease of a run while its `with` block runs.

    The lease is written and published by a thread of its own, so that neither the run nor the
    GPU under it waits for that. A run that uses no repository leaves none and publishes nothing.

    Args:
        cache_dir: The cache folder.
        run_id: The run.
        holder: See `Lease`.
        publish: Lets other containers see the lease; must not raise.
    """

    def __init__(
        self, cache_dir: str | Path, run_id: str, holder: str, publish: Callable[[], None]
    ) -> None:
        self._cache_dir = cache_dir
        self._run_id, self._holder, self._since = run_id, holder, time.time()
        self._publish = publish
        self._file: Path | None = None
        self._folders: set[str] = set()
        self._added: queue.SimpleQueue[tuple[str, ...] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()

    def add(self, folders: Iterable[str]) -> None:
        """Add repositories to the lease; returns at once, and may be called in an audit hook."""
        self._added.put(tuple(folders))
        with self._starting:
            if self._thread is None:  # only now: many runs use no model, and some take milliseconds
                thread = threading.Thread(target=self._keep, daemon=True, name="cache-lease")
                try:
                    thread.start()
                except RuntimeError as e:  # too many threads, or the process ends
                    logger.warning("the models in use are not protected from deletion: %s", e)
                else:
                    self._thread = thread

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._thread is None:
            return
        self._added.put(None)
        if isinstance(error, KeyboardInterrupt):
            # the run goes on elsewhere, perhaps already does: its lease is no longer ours
            return
        self._thread.join(_MAX_WAIT_S)
        if self._file is not None:
            # not published: Modal reports the run as ended, which frees what it held
            remove_file(str(self._file))

    def _keep(self) -> None:
        self._file = _lease_file(find_layout(self._cache_dir), self._run_id, self._holder)
        while (folders := self._added.get()) is not None:
            if self._file is None or self._folders.issuperset(folders):
                continue
            self._folders.update(folders)
            lease = {
                "run_id": self._run_id,
                "holder": self._holder,
                "since": self._since,
                "folders": sorted(self._folders),
            }
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_json_atomically(self._file, lease, durable=False)
            except OSError as e:  # a full disk: the run matters more
                logger.warning("the models in use are not protected from deletion: %s", e)
            else:
                self._publish()


def _lease_file(layout: CacheLayout, run_id: str, holder: str) -> Path | None:
    if layout.leases is None or not is_without_links(layout.leases, layout.root):
        return None
    # a run that is submitted once more has another holder, and so another file: what the first
    # container commits late must not take away the lease of the second
    digest = hashlib.sha256(holder.encode()).hexdigest()[:8]
    return layout.leases / f"{run_id}.{digest}.json"
