"""What can be done to a cache, as functions from JSON to JSON.

The same function serves a folder of this machine and, called in a container, the volume.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.disk import locked
from ml_experiments.cache.items import CachedItem, Scan, Unrecognised
from ml_experiments.cache.layout import Kind, find_layout, parse_repo_folder
from ml_experiments.cache.patterns import NamePattern, suggest_name
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.verification import verify
from ml_experiments.errors import CacheError

if TYPE_CHECKING:
    from ml_experiments.cache.pull.progress import PullProgress

_SORT_KEYS: dict[str, Callable[[CachedItem], Any]] = {
    "name": lambda item: item.name.casefold(),
    "size": lambda item: -item.bytes,
    "used": lambda item: -item.last_used,
}


def list_cache(
    cache_dir: str | Path, pattern: str | None = None, kind: str | None = None, sort: str = "name"
) -> dict[str, Any]:
    """Return what is in a cache.

    Raises:
        CacheError: If the pattern, kind, order or folder is not usable.
    """
    if sort not in _SORT_KEYS:
        raise CacheError(f"{sort!r} is not an order; known: {', '.join(_SORT_KEYS)}")
    if kind is not None and kind not in get_args(Kind):
        raise CacheError(f"{kind!r} is not a kind; known: {', '.join(get_args(Kind))}")
    parsed = None if pattern is None else NamePattern.parse(pattern)
    found = scan(cache_dir)
    items = [
        item
        for item in found.items
        if (kind is None or item.kind == kind) and (parsed is None or _means(parsed, item))
    ]
    items.sort(key=_SORT_KEYS[sort])
    every_name = [item.name for item in found.items]
    leftovers = [
        leftover.to_dict(found.layout.root)
        for leftover in found.leftovers
        if (kind is None or leftover.kind == kind)
        and (parsed is None or parsed.matches(leftover.name))
    ]
    unrecognised = [
        entry.to_dict(found.layout.root)
        for entry in found.unrecognised
        if (kind is None and parsed is None) or _is_asked_for(entry, parsed, kind)
    ]
    return {
        **found.to_dict(),
        "items": [item.to_dict() for item in items],
        "leftovers": leftovers,
        "unrecognised": unrecognised,
        "hint": "" if items or pattern is None else suggest_name(pattern, every_name),
    }


def show_cached(cache_dir: str | Path, name: str) -> dict[str, Any]:
    """Return the revisions and files of one name, from each part of the cache that has it.

    Args:
        cache_dir: The cache folder.
        name: A name; with `@REVISION`, by hash, branch or tag, only that revision is shown.

    Raises:
        CacheError: If nothing in the cache has that name.
    """
    found = scan(cache_dir)
    items = _find_named(found, name)
    if not items:
        hint = suggest_name(name, [item.name for item in found.items])
        raise CacheError(f"nothing in the cache is named {name!r}{hint}")
    return {"items": [{**item.to_dict(), "contents": _contents(item)} for item in items]}


def clear(
    cache_dir: str | Path,
    pattern: str | None = None,
    force: bool = False,
    kinds: Sequence[Kind] = ("model",),
    older_than_s: float | None = None,
    larger_than: int | None = None,
    keep_latest: bool = False,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return what would be deleted or, with `force`, delete exactly that and return it.

    Raises:
        CacheError: If the pattern, a filter or the folder is not usable.
    """
    with locked(find_layout(cache_dir).lockable):  # what another deletion leaves is no plan
        plan = plan_deletion(
            cache_dir,
            pattern,
            kinds=kinds,
            older_than=None if older_than_s is None else _as_age(older_than_s),
            larger_than=larger_than,
            keep_latest=keep_latest,
            only=only,
        )
        return plan.execute().to_dict() if force else plan.to_dict()


def pull_repo(
    cache_dir: str | Path,
    name: str,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kind: str = "model",
    on_progress: Callable[[PullProgress], None] | None = None,
) -> dict[str, Any]:
    """Download a repository.

    Raises:
        CacheError: If it can't be downloaded.
    """
    from ml_experiments.cache.pull.pulling import pull  # the client of the Hub is slow to import

    outcome = pull(
        name,
        cache_dir=cache_dir,
        revision=revision,
        include=include,
        exclude=exclude,
        kind=kind,
        on_progress=on_progress,
    )
    return outcome.to_dict()


def verify_cache(
    cache_dir: str | Path, name: str | None = None, repair: bool = False
) -> dict[str, Any]:
    """Compare contents with hashes.

    Raises:
        CacheError: If the pattern or folder is not usable, or nothing matches.
    """
    with locked(find_layout(cache_dir).lockable) if repair else nullcontext():
        return verify(cache_dir, name, repair=repair).to_dict()


OPERATIONS: dict[str, Callable[..., dict[str, Any]]] = {
    "list": list_cache,
    "show": show_cached,
    "clear": clear,
    "pull": pull_repo,
    "verify": verify_cache,
}


def _as_age(seconds: float) -> timedelta:
    try:
        return timedelta(seconds=seconds)
    except OverflowError:
        return timedelta.max


def _means(pattern: NamePattern, item: CachedItem) -> bool:
    if not pattern.matches(item.name):
        return False
    return pattern.revision is None or any(
        pattern.matches_revision(revision.commit, revision.refs) for revision in item.revisions
    )


def _is_asked_for(entry: Unrecognised, pattern: NamePattern | None, kind: str | None) -> bool:
    parsed = parse_repo_folder(entry.path.name)
    if parsed is None:
        return False
    return kind in (None, parsed[0]) and (pattern is None or pattern.matches(parsed[1]))


def _find_named(found: Scan, wanted: str) -> list[CachedItem]:
    name, at, revision = wanted.partition("@")
    pattern = NamePattern(wanted, name, revision)
    items = []
    for item in found.items:
        if item.name.casefold() == wanted.casefold():
            items.append(item)
        elif at and item.name.casefold() == name.casefold():
            meant = [r for r in item.revisions if pattern.matches_revision(r.commit, r.refs)]
            items += [replace(item, revisions=tuple(meant))] if meant else []
    return items


def _contents(item: CachedItem) -> list[dict[str, Any]]:
    if not item.revisions:
        return [
            {"revision": None, "path": os.path.relpath(file, item.path.parent), "bytes": s.st_size}
            for file, s in sorted(item.files.items())
            if s is not None
        ]
    return [
        {
            "revision": revision.commit,
            "path": os.path.relpath(file.path, item.path / "snapshots" / revision.commit),
            "bytes": file.bytes,
            "blob": os.path.basename(file.blob),
        }
        for revision in item.revisions
        for file in revision.files
    ]
