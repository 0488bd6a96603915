"""The request for one run, which travels to a container as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.spec import RunSpec


@dataclass(frozen=True)
class RunRequest:
    """What a container needs for one run.

    Attributes:
        spec: What to run.
        manifest: What the client records of the run.
        secrets: Values that no record may hold, as far as the spec contains them.
        setup_key: See `PreparedRun`.
        is_capped: Whether all reruns share one timeout, because a cap depends on it.
        idle_s: How long the container waits for another run in the end.
    """

    spec: RunSpec
    manifest: Manifest
    secrets: tuple[str, ...]
    setup_key: str | None = None
    is_capped: bool = False
    idle_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the request as JSON."""
        return {
            "spec": self.spec.to_dict(),
            "manifest": self.manifest.to_dict(),
            "secrets": list(self.secrets),
            "setup_key": self.setup_key,
            "is_capped": self.is_capped,
            "idle_s": self.idle_s,
        }


def make_request(
    spec: RunSpec,
    manifest: Manifest,
    secrets: Iterable[str],
    setup_key: str | None,
    *,
    is_capped: bool = False,
    idle_s: float = 0.0,
) -> RunRequest:
    """Return the request for a run; of the secrets, only those that the spec contains travel.

    Args:
        spec: What to run.
        manifest: What the client records of the run.
        secrets: Values that no record may hold.
        setup_key: See `PreparedRun`.
        is_capped: See `RunRequest`.
        idle_s: See `RunRequest`.
    """
    strings = list(_strings_in([spec.config, spec.name, spec.tags]))
    return RunRequest(
        spec,
        manifest,
        tuple(v for v in secrets if v and any(v in string for string in strings)),
        setup_key,
        is_capped,
        idle_s,
    )


def _strings_in(data: Any) -> Iterator[str]:
    """Yield every string in JSON, keys included."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _strings_in(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _strings_in(value)
