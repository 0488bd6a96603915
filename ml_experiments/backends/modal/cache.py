"""The cache commands on Modal: in a CPU container that has the cache volume."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import modal

from ml_experiments.backends.modal.container.run_remote import cache_operation
from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.backends.modal.image import (
    CACHE_MOUNT,
    cache_image,
    cache_volume,
    with_this_package,
)
from ml_experiments.backends.modal.quiet import without_modals_output
from ml_experiments.backends.modal.secrets import find_secrets
from ml_experiments.cache.pull.progress import PullProgress

# a download of hundreds of GB takes hours, and CPU time costs little
TIME_LIMIT_S = 24 * 3600
_PROGRESS_EVERY_S = 0.2


def call_cache_operation(
    operation: str,
    arguments: dict[str, Any],
    on_progress: Callable[[PullProgress], None] | None = None,
) -> dict[str, Any]:
    """Do one of `ml_experiments.cache.operations.OPERATIONS` to the cache volume.

    Args:
        operation: Its name.
        arguments: Its arguments, as JSON.
        on_progress: Hears how far a download is.

    Raises:
        AuthError: If there is no token, or Modal rejected it.
        BackendError: If Modal refuses or fails.
        CacheError: As the operation raises it.
    """
    require_access()
    app = modal.App("ml-experiments-cache")
    function = app.function(
        image=with_this_package(cache_image()),
        volumes={CACHE_MOUNT: cache_volume()},
        secrets=list(find_secrets(()).secrets),
        timeout=TIME_LIMIT_S,
        include_source=False,
    )(stream_cache_operation)
    with (
        platform_errors(f"do `cache {operation}` on the volume"),
        without_modals_output(),
        app.run(),
    ):
        for event in function.remote_gen(operation, arguments, on_progress is not None):
            if "outcome" in event:
                outcome: dict[str, Any] = event["outcome"]
                return outcome
            if on_progress is not None:
                on_progress(PullProgress(**event["progress"]))
    raise RuntimeError("the container ended without an outcome")


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
