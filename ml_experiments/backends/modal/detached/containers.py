"""Small containers without a GPU in which a function of this package goes on without its client."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import modal

from ml_experiments.backends.modal.billing.prices import host_usd_per_s
from ml_experiments.backends.modal.container.run_remote import SOURCE_FOLDER
from ml_experiments.backends.modal.errors import platform_errors, without_modals_output
from ml_experiments.backends.modal.image import package_image
from ml_experiments.backends.modal.mounts import RUNS_MOUNT, runs_volume
from ml_experiments.backends.modal.preflight.import_graph import OWN_PACKAGE
from ml_experiments.backends.modal.preflight.own_package import PACKAGE
from ml_experiments.backends.modal.resources import MAX_TIMEOUT_S

# where such a container has the user's modules
SOURCE_PLACE = f"/root/{SOURCE_FOLDER}"
# what is reserved, and the limit
_CPU_CORES, _MEMORY_MIB = (0.5, 1.0), (1024, 4096)
_NOT_SENT = ["**/__pycache__", "**/*.pyc"]


@dataclass(frozen=True)
class RemoteCall:
    """A function that goes on on Modal.

    Attributes:
        call_id: Modal's name for the call; empty where it isn't known whether there was one.
    """

    call_id: str

    @classmethod
    def of_this_container(cls) -> RemoteCall:
        """Return the call that this container executes."""
        call_id = modal.current_function_call_id()
        assert call_id is not None
        return cls(call_id)

    def goes_on(self) -> bool:
        """Return whether it has not ended.

        Raises:
            BackendError: If Modal can't be reached.
        """
        if not self.call_id:
            return False
        with platform_errors("ask for the state of the call"):
            try:
                modal.FunctionCall.from_id(self.call_id).get(timeout=0)
            except TimeoutError:
                return True
            except (modal.exception.ConnectionError, modal.exception.AuthError):
                raise
            except Exception:  # noqa: BLE001 - whatever it has ended with
                return False
            return False


def most_usd_per_s() -> float:
    """Return the most that a second of such a container costs."""
    return host_usd_per_s(_CPU_CORES[1], _MEMORY_MIB[1] / 1024)


def start_on_modal(
    function: Callable[[dict[str, Any]], object],
    request: dict[str, Any],
    *,
    name: str,
    tags: Mapping[str, str],
    source: Path,
    pip: Sequence[str],
    before_call: Callable[[], object],
    timeout_s: int = MAX_TIMEOUT_S,
    retries: int = 0,
) -> RemoteCall:
    """Start a function of this package in a container of its own; return once it is accepted.

    Args:
        function: A function at the top of a module.
        request: Its argument, as JSON.
        name: That of the app.
        tags: Those of the app.
        source: The folder with the user's modules.
        pip: Requirements to add to the image.
        before_call: Is called once the image is built: until then, nothing can be there.
        timeout_s: The call is ended after so many seconds.
        retries: How often it is called again after an exception, or after its timeout.

    Raises:
        BackendError: If Modal refuses or can't be reached.
    """
    image = package_image(pip=pip).add_local_dir(PACKAGE, f"/root/{OWN_PACKAGE}", ignore=_NOT_SENT)
    if any(source.iterdir()):  # empty for an experiment of this package
        image = image.add_local_dir(source, SOURCE_PLACE)
    app = modal.App(name, tags=dict(tags))
    remote = app.function(
        image=image,
        timeout=timeout_s,
        retries=retries,
        max_containers=1,
        volumes={RUNS_MOUNT: runs_volume()},
        cpu=_CPU_CORES,
        memory=_MEMORY_MIB,
        include_source=False,
    )(function)
    with platform_errors("start the controller"), without_modals_output(), app.run(detach=True):
        before_call()
        call = remote.spawn(request)
        return RemoteCall(call.object_id)
