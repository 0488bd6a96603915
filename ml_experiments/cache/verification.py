"""Checking that files in a cache have the hashes that their names give.

A blob's name is its etag: the sha256 of a large file, git's own sha1 of a small one. A torch
checkpoint carries the beginning of its sha256 before its suffix.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml_experiments.cache.delete.in_use import InUse, find_in_use, is_recent
from ml_experiments.cache.disk import link_target, remove_file
from ml_experiments.cache.items import CachedItem, Damage, Scan
from ml_experiments.cache.patterns import NamePattern, suggest_name
from ml_experiments.cache.scan.repositories import is_incomplete
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.shared_blobs import stored_file
from ml_experiments.errors import CacheError

_CHUNK_BYTES = 1 << 20
_TORCH_HASH = re.compile(r".+-([0-9a-f]{8,64})\.\w+")
_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHOWN_DIGITS = 8


@dataclass(frozen=True)
class Problem:
    """A file that doesn't hold what it should, or a link or ref that leads to nothing.

    Attributes:
        path: Relative to the cache folder.
        what: What is wrong, as `leads to content that is missing`.
        expected: The hash that its name gives; None for a link or a ref.
        actual: The hash of what it holds; None if there is nothing.
        repaired: Whether it was removed, so that the next download fetches it.
        why_not_repaired: Why it is still there although a repair was requested.
    """

    name: str
    kind: str
    path: str
    what: str
    expected: str | None
    actual: str | None
    repaired: bool = False
    why_not_repaired: str | None = None


@dataclass(frozen=True)
class VerifyOutcome:
    """What a verification found; `unchecked` are files without a hash, or not readable."""

    checked: int
    checked_bytes: int
    unchecked: tuple[str, ...]
    problems: tuple[Problem, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "checked": self.checked,
            "checked_bytes": self.checked_bytes,
            "unchecked": list(self.unchecked),
            "problems": [asdict(problem) for problem in self.problems],
        }


@dataclass(frozen=True)
class _Check:
    """One file to hash; `links` lead to its content and are removed with it in a repair."""

    item: CachedItem
    path: str
    expected: str
    links: tuple[str, ...] = field(default=())


def verify(
    cache_dir: str | Path, name: str | None = None, *, repair: bool = False
) -> VerifyOutcome:
    """Compare the contents of a cache with the hashes in its names.

    Args:
        cache_dir: The cache folder.
        name: A pattern of names and a revision, as `org/*` or `org/name@v2`; all by default.
        repair: Remove what is wrong, so that the next download fetches it again.

    Raises:
        CacheError: If the pattern or the folder is not usable, or nothing matches.
    """
    found = scan(cache_dir)
    checks, damage, unchecked = _gather(found, name)
    root = found.layout.root
    wrong: list[tuple[_Check, str | None]] = []
    checked = checked_bytes = 0
    for check in checks:
        try:
            size, actual = _hash(check)
        except FileNotFoundError:
            if os.path.lexists(check.path):  # a link into the shared store
                wrong.append((check, None))
            continue  # else deleted meanwhile: nothing is wrong with it now
        except OSError:
            unchecked.append(check.path)
            continue
        checked += 1
        checked_bytes += size
        if actual != check.expected:
            wrong.append((check, actual))
    in_use = find_in_use(found.layout) if repair and (wrong or damage) else None
    problems = [_mend(item, flaw, in_use, root) for item, flaw in damage]
    problems += [_replace(check, actual, in_use, root) for check, actual in wrong]
    return VerifyOutcome(
        checked=checked,
        checked_bytes=checked_bytes,
        unchecked=tuple(sorted(os.path.relpath(path, root) for path in unchecked)),
        problems=tuple(problems),
    )


def _gather(
    found: Scan, name: str | None
) -> tuple[list[_Check], list[tuple[CachedItem, Damage]], list[str]]:
    pattern = None if name is None else NamePattern.parse(name)
    checks: list[_Check] = []
    damage: list[tuple[CachedItem, Damage]] = []
    unchecked: list[str] = []
    matched = False
    for item in found.items:
        commits = {revision.commit for revision in item.revisions}
        if pattern is not None:
            if not pattern.matches(item.name):
                continue
            if pattern.revision is not None:
                commits = {
                    r.commit for r in item.revisions if pattern.matches_revision(r.commit, r.refs)
                }
                if not commits:
                    continue
        matched = True
        if item.revisions:
            whole = pattern is None or pattern.revision is None
            _gather_repo(item, None if whole else commits, checks, damage, unchecked)
        elif item.store == "torch" and (match := _TORCH_HASH.fullmatch(item.name)):
            checks.append(_Check(item, str(item.path), match[1]))
        elif not item.is_repo:
            unchecked.extend(item.files)
    if pattern is not None and not matched:
        hint = suggest_name(pattern.given, [item.name for item in found.items])
        raise CacheError(f"nothing in the cache matches {pattern.given!r}{hint}")
    return checks, damage, unchecked


def _gather_repo(
    item: CachedItem,
    commits: Collection[str] | None,
    checks: list[_Check],
    damage: list[tuple[CachedItem, Damage]],
    unchecked: list[str],
) -> None:
    """Add the files of a repository, or of some of its revisions."""
    blobs = f"{item.path / 'blobs'}{os.sep}"
    snapshots = f"{item.path / 'snapshots'}{os.sep}"
    folders = (snapshots,) if commits is None else tuple(f"{snapshots}{c}{os.sep}" for c in commits)
    damaged = {flaw.path for flaw in item.damage}
    damage += [
        (item, flaw) for flaw in item.damage if commits is None or flaw.path.startswith(folders)
    ]
    links: dict[str, list[str]] = {}
    wanted: set[str] = set()
    for path, status in item.files.items():
        if not path.startswith(snapshots):
            continue
        target = None if status is not None else link_target(path)
        if target is not None:
            links.setdefault(target, []).append(path)
        if not path.startswith(folders) or path in damaged:
            continue
        if target is None:
            unchecked.append(path)  # copied here, not linked: its name is the user's
        else:
            wanted.add(target)
    for path, status in item.files.items():
        if path == blobs.removesuffix(os.sep):
            unchecked.append(path)  # a folder that can't be read
        if not path.startswith(blobs) or is_incomplete(path):
            continue
        if commits is not None and path not in wanted:
            continue
        etag = path[len(blobs) :]
        is_link = status is None and link_target(path) is not None
        leads_to_store = is_link and (
            stored_file(path, item.path.parent) is not None or not os.path.exists(path)
        )
        if _ETAG.fullmatch(etag) and (status is not None or leads_to_store):
            checks.append(_Check(item, path, etag, tuple(links.get(path, ()))))
        else:
            unchecked.append(path)


def _hash(check: _Check) -> tuple[int, str]:
    """Return a file's size and the hash that its expected one is to be compared with."""
    with open(check.path, "rb", opener=_open_quietly) as file:
        size = os.fstat(file.fileno()).st_size
        if len(check.expected) == 40:
            digest = hashlib.sha1(b"blob %d\0" % size)
        else:
            digest = hashlib.sha256()
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return size, digest.hexdigest()[: len(check.expected)]


def _open_quietly(path: str, flags: int) -> int:
    # a check is no use of the file, so its access time should stay as it is
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:
        return os.open(path, flags)  # only the owner of a file may leave its access time alone


def _mend(item: CachedItem, flaw: Damage, in_use: InUse | None, root: Path) -> Problem:
    """Return a link or ref that leads to nothing, removed unless `in_use` is None."""
    why: str | None = None
    if in_use is not None:
        is_going_on = any(
            status is not None and is_recent(status.st_mtime, time.time())
            for path, status in item.files.items()
            if is_incomplete(path) or path == flaw.path
        )
        # a download writes the ref first
        why = "its download may be going on" if is_going_on else _remove([flaw.path], in_use)
    path = os.path.relpath(flaw.path, root)
    repaired = in_use is not None and why is None
    return Problem(item.name, item.kind, path, flaw.what, None, None, repaired, why)


def _replace(check: _Check, actual: str | None, in_use: InUse | None, root: Path) -> Problem:
    """Return a file with the wrong content, removed unless `in_use` is None."""
    why: str | None = None
    if in_use is not None:
        stored = stored_file(check.path, check.item.path.parent)
        # links first: a snapshot must never lead to content that is gone
        why = _remove([*check.links, check.path, *([] if stored is None else [stored])], in_use)
    path = os.path.relpath(check.path, root)
    what = "leads to content that is missing"
    if actual is not None:
        what = f"has the hash {actual[:_SHOWN_DIGITS]}…"
    repaired = in_use is not None and why is None
    item = check.item
    return Problem(item.name, item.kind, path, what, check.expected, actual, repaired, why)


def _remove(paths: list[str], in_use: InUse) -> str | None:
    """Remove files unless one is in use; return why that failed, or None."""
    for path in paths:
        if (owner := in_use.owner_of(Path(path))) is not None:
            return f"is in use by {owner}"
    problems = [why for path in paths if (why := remove_file(path)) is not None]
    return next(iter(problems), None)
