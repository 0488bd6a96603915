"""The cache commands on Modal: in a CPU container that has the cache volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import modal

from ml_experiments.backends.modal.container.cache_operations import (
    stream_cache_operation,
)
from ml_experiments.backends.modal.errors import (
    platform_errors,
    require_access,
    without_modals_output,
)
from ml_experiments.backends.modal.image import cache_image, with_this_package
from ml_experiments.backends.modal.mounts import CACHE_MOUNT, cache_volume
from ml_experiments.backends.modal.secrets import find_secrets
from ml_experiments.cache.pull.progress import PullProgress

# a download of hundreds of GB takes hours, and CPU time costs little
TIME_LIMIT_S = 24 * 3600
_USE_LOCAL_CACHE = "or use this machine's own cache: --local"


def call_cache_operation(
    operation: str,
    arguments: dict[str, Any],
    on_progress: Callable[[PullProgress], None] | None = None,
) -> dict[str, Any]:
    """Do one of `ml_experiments.cache.operations.OPERATIONS` to the cache volume.

    Args:
        operation: Its name.
        arguments: Its arguments, as JSON.
        on_progress: Called as bytes of a download arrive.

    Raises:
        AuthError: If there is no token, or Modal rejected it.
        BackendError: If Modal refuses or fails.
        CacheError: As the operation raises it.
    """
    require_access(_USE_LOCAL_CACHE)
    app = modal.App("ml-experiments-cache")
    function = app.function(
        image=with_this_package(cache_image(), "backends.modal.container.cache_operations"),
        volumes={CACHE_MOUNT: cache_volume()},
        secrets=list(find_secrets(()).secrets),
        timeout=TIME_LIMIT_S,
        include_source=False,
    )(stream_cache_operation)
    with (
        platform_errors(f"do `cache {operation}` on the volume", _USE_LOCAL_CACHE),
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
