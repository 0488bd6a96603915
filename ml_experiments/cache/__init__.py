"""The model cache: see it, fill it, trim it, and never delete the wrong thing.

Everything here works on a folder and knows nothing of Modal.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ml_experiments.cache.deletion import DeletionOutcome, DeletionPlan, plan_deletion
    from ml_experiments.cache.items import CachedItem, CachedRevision, Scan
    from ml_experiments.cache.layout import repo_folder, this_machine
    from ml_experiments.cache.leases import Lease, LeaseKeeper, sweep_leases
    from ml_experiments.cache.operations import OPERATIONS
    from ml_experiments.cache.pull_progress import PullProgress
    from ml_experiments.cache.pulling import PullOutcome, pull
    from ml_experiments.cache.recorded_uses import record_uses
    from ml_experiments.cache.scanning import scan
    from ml_experiments.cache.stats import CacheStats, read_stats
    from ml_experiments.cache.used_revisions import CacheWatch, UsedRevision
    from ml_experiments.cache.verification import VerifyOutcome, verify

# name -> module; imported on first use: a worker that watches the cache needs no huggingface_hub
_HOMES = {
    "CacheStats": "stats",
    "CacheWatch": "used_revisions",
    "CachedItem": "items",
    "CachedRevision": "items",
    "DeletionOutcome": "deletion",
    "DeletionPlan": "deletion",
    "Lease": "leases",
    "LeaseKeeper": "leases",
    "OPERATIONS": "operations",
    "PullOutcome": "pulling",
    "PullProgress": "pull_progress",
    "Scan": "items",
    "UsedRevision": "used_revisions",
    "VerifyOutcome": "verification",
    "plan_deletion": "deletion",
    "pull": "pulling",
    "read_stats": "stats",
    "record_uses": "recorded_uses",
    "repo_folder": "layout",
    "scan": "scanning",
    "sweep_leases": "leases",
    "this_machine": "layout",
    "verify": "verification",
}

__all__ = [
    "OPERATIONS",
    "CacheStats",
    "CacheWatch",
    "CachedItem",
    "CachedRevision",
    "DeletionOutcome",
    "DeletionPlan",
    "Lease",
    "LeaseKeeper",
    "PullOutcome",
    "PullProgress",
    "Scan",
    "UsedRevision",
    "VerifyOutcome",
    "plan_deletion",
    "pull",
    "read_stats",
    "record_uses",
    "repo_folder",
    "scan",
    "sweep_leases",
    "this_machine",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
