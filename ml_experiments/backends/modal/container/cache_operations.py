"""Cache operations in a container that has the cache volume."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import grpclib
import modal
import modal.experimental

from ml_experiments.backends.modal.mounts import CACHE_VOLUME, mounted_cache_dir
from ml_experiments.cache.operations import OPERATIONS
from ml_experiments.cache.pull.progress import PullProgress
from ml_experiments.cache.usage.leases import Lease, sweep_leases

# Modal ends a function after a day at most: an older lease has expired, even if Modal can't say so
_MAX_RUN_S = 25 * 3600.0
_PROGRESS_EVERY_S = 0.2

logger = logging.getLogger(__name__)


def list_cached_models() -> list[str]:
    """Return the names of the models in the cache."""
    found = cache_operation("list", {"kind": "model"})
    # of a download that failed at its start there is a name, but nothing to use
    return sorted({item["name"] for item in found["items"] if item["files"]})


def clear_cache(pattern: str | None, force: bool) -> dict[str, Any]:
    """Delete models from the cache, or say what would be deleted."""
    return cache_operation("clear", {"pattern": pattern, "force": force})


def cache_operation(operation: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Do one of `OPERATIONS` on the cache volume as it is now, and commit what has changed."""
    volume = modal.Volume.from_name(CACHE_VOLUME)
    volume.reload()
    cache_dir = mounted_cache_dir()
    if operation in ("clear", "verify"):  # those that must not touch what a run uses
        sweep_leases(cache_dir, _goes_on)
    try:
        return OPERATIONS[operation](cache_dir, **arguments)
    finally:
        volume.commit()  # also what a download that failed has finished


def _goes_on(lease: Lease) -> bool:
    """Return whether a run still goes on, as far as Modal knows."""
    if lease.since < time.time() - _MAX_RUN_S:
        return False
    try:
        call = modal.FunctionCall.from_id(lease.holder)
        # of a map, which input was the run is not known: it counts until all have ended
        return any(_is_unfinished(call, index) for index in range(call.num_inputs()))
    except (modal.exception.NotFoundError, modal.exception.InvalidError):
        return False  # too long ago for Modal to know it
    except (grpclib.GRPCError, modal.exception.ConnectionError, OSError) as e:
        logger.warning("whether run %s goes on is not known: %s", lease.run_id, e)
        return True


def _is_unfinished(call: modal.FunctionCall[Any], index: int) -> bool:
    try:
        call.get(timeout=0, index=index)
    except TimeoutError:
        return True
    except (grpclib.GRPCError, modal.exception.ConnectionError):
        raise
    except Exception:  # noqa: BLE001 - what the run raised, or a container that was lost
        return False
    return False


def stream_cache_operation(
    operation: str, arguments: dict[str, Any], with_progress: bool
) -> Iterator[dict[str, Any]]:
    """Do an operation in this container; yield how far it is, then its outcome."""
    events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    last = 0.0

    def report(progress: PullProgress) -> None:
        nonlocal last
        is_last = progress.done_bytes == progress.total_bytes
        if is_last or time.monotonic() - last > _PROGRESS_EVERY_S:
            last = time.monotonic()
            state = {"done_bytes": progress.done_bytes, "total_bytes": progress.total_bytes}
            events.put({"progress": state})

    def work() -> None:
        more = {"on_progress": report} if with_progress else {}
        try:
            events.put({"outcome": cache_operation(operation, {**arguments, **more})})
        except BaseException as e:  # noqa: BLE001 - raised again below, in the caller's thread
            events.put({"error": e})

    threading.Thread(target=work, daemon=True, name="cache-operation").start()
    while True:
        event = events.get()
        if "error" in event:
            raise event["error"]
        yield event
        if "outcome" in event:
            return
