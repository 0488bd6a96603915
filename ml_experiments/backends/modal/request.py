"""What travels to a container: the request for one run, as JSON."""

from __future__ import annotations

import secrets as random_tokens
from collections.abc import Iterable, Iterator
from typing import Any

from ml_experiments.runs.spec import RunSpec


def make_request(
    spec: RunSpec, manifest: dict[str, Any], secrets: Iterable[str], submission: str | None = None
) -> dict[str, Any]:
    """Return what `run_remote` takes: JSON.

    Args:
        spec: What to run.
        manifest: What the client knows of the run's origin.
        secrets: Values that no record may hold; only those that the spec holds travel.
        submission: Tells a new submission, after which old results don't count, from a rerun;
            drawn by default.
    """
    texts = list(_texts_in([spec.config, spec.name, spec.tags]))
    return {
        "spec": spec.to_dict(),
        "manifest": {**manifest, "submission": submission or random_tokens.token_hex(8)},
        "secrets": [value for value in secrets if value and any(value in text for text in texts)],
    }


def _texts_in(data: Any) -> Iterator[str]:
    """Yield every text in JSON, keys included."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield key
            yield from _texts_in(value)
    elif isinstance(data, list | tuple):
        for value in data:
            yield from _texts_in(value)
