"""Checking that files in a cache hold what their names say.

A blob's name is its etag: the sha256 of a large file, git's own sha1 of a small one. A torch
checkpoint carries the beginning of its sha256 before its suffix.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ml_experiments.cache.delete.in_use import InUse, find_in_use
from ml_experiments.cache.disk import link_target, list_files, remove_file
from ml_experiments.cache.items import CachedItem, Scan
from ml_experiments.cache.layout import is_real_folder
from ml_experiments.cache.patterns import NamePattern
from ml_experiments.cache.scan.scanning import parse_repo_folder, scan
from ml_experiments.cache.shared_blobs import stored_file
from ml_experiments.errors import CacheError, suggest

_CHUNK_BYTES = 1 << 20
_TORCH_HASH = re.compile(r".+-([0-9a-f]{8,64})\.\w+")


@dataclass(frozen=True)
class Problem:
    """A file that doesn't hold what it should.

    Attributes:
        path: Relative to the cache folder.
        expected: The hash that its name gives; None for a link whose content is missing.
        repaired: Whether it was removed, so that the next download fetches it.
        why_not_repaired: Why it is still there although a repair was asked for.
    """

    name: str
    kind: str
    path: str
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
    """One file to hash; `links` lead to its content and go with it in a repair."""

    name: str
    kind: str
    path: str
    expected: str
    links: tuple[str, ...] = field(default=())


def verify(
    cache_dir: str | Path,
    name: str | None = None,
    *,
    repair: bool = False,
    on_file: Callable[[str], None] | None = None,
) -> VerifyOutcome:
    """Compare the contents of a cache with the hashes in its names.

    Args:
        cache_dir: The cache folder.
        name: A pattern of names and a revision, as `org/*` or `org/name@v2`; all by default.
        repair: Remove what is wrong, so that the next download fetches it again.
        on_file: Called with the path of each file before it is read.

    Raises:
        CacheError: If the pattern or the folder is not usable, or nothing matches.
    """
    found = scan(cache_dir)
    checks, problems, unchecked = _gather(found, name)
    root = found.layout.root
    checked = checked_bytes = 0
    for check in checks:
        if on_file is not None:
            on_file(check.path)
        try:
            size, actual = _hash(check)
        except FileNotFoundError:
            continue  # deleted meanwhile: nothing is wrong with it now
        except PermissionError:
            unchecked.append(check.path)
            continue
        checked += 1
        checked_bytes += size
        if actual != check.expected:
            problems.append((check, actual))
    in_use = find_in_use(found.layout) if repair and problems else None
    return VerifyOutcome(
        checked=checked,
        checked_bytes=checked_bytes,
        unchecked=tuple(sorted(os.path.relpath(path, root) for path in unchecked)),
        problems=tuple(_problem(check, actual, in_use, root) for check, actual in problems),
    )


def _gather(
    found: Scan, name: str | None
) -> tuple[list[_Check], list[tuple[_Check, str | None]], list[str]]:
    pattern = None if name is None else NamePattern.parse(name)
    checks: list[_Check] = []
    dangling: list[tuple[_Check, str | None]] = []
    unchecked: list[str] = []
    matched = False
    for kind, repo_name, repo in _repos(found):
        if pattern is not None and not pattern.matches(repo_name):
            continue
        commits = None if pattern is None else _meant_commits(repo, pattern)
        if commits is None or commits:
            matched = True
            _gather_repo(repo, repo_name, kind, commits, checks, dangling, unchecked)
    for item in found.items:
        if item.repo is not None or (pattern is not None and pattern.revision is not None):
            continue
        if pattern is None or pattern.matches(item.name):
            matched = True
            _gather_item(item, checks, unchecked)
    if pattern is not None and not matched:
        hint = suggest(pattern.text, [item.name for item in found.items])
        raise CacheError(f"nothing in the cache matches {pattern.text!r}{hint}")
    return checks, dangling, unchecked


def _repos(found: Scan) -> Iterator[tuple[str, str, Path]]:
    """Yield repositories, those included that a scan can't read because they are damaged."""
    for item in found.items:
        if item.repo is not None:
            yield item.kind, item.name, item.path
    for entry in found.unrecognised:
        parsed = parse_repo_folder(entry.path.name)
        if parsed is not None and entry.path.is_dir() and not entry.path.is_symlink():
            yield *parsed, entry.path


def _meant_commits(repo: Path, pattern: NamePattern) -> set[str] | None:
    """Return the revisions of a repository that a pattern means; None for all of it."""
    if pattern.revision is None:
        return None
    refs: dict[str, list[str]] = {}
    for file in list_files(str(repo / "refs")):
        try:
            commit = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue  # it names nothing
        refs.setdefault(commit, []).append(os.path.relpath(file, repo / "refs"))
    snapshots = repo / "snapshots"
    commits = os.listdir(snapshots) if is_real_folder(snapshots, repo) else []
    return {c for c in commits if pattern.matches_revision(c, tuple(refs.get(c, ())))}


def _gather_repo(
    repo: Path,
    name: str,
    kind: str,
    commits: set[str] | None,
    checks: list[_Check],
    dangling: list[tuple[_Check, str | None]],
    unchecked: list[str],
) -> None:
    blobs = f"{repo / 'blobs'}{os.sep}"
    snapshots = f"{repo / 'snapshots'}{os.sep}"
    links: dict[str, list[str]] = {}
    wanted: set[str] = set()
    files = list_files(str(repo))
    for path, status in files.items():
        if path.startswith(snapshots):
            commit = path[len(snapshots) :].partition(os.sep)[0]
            is_meant = commits is None or commit in commits
            if status is not None:
                if is_meant:
                    unchecked.append(path)  # copied here, not linked: its name is the user's
                continue
            target = link_target(path) or path
            links.setdefault(target, []).append(path)
            if not is_meant:
                continue
            wanted.add(target)
            if target.startswith(blobs) and not os.path.lexists(target):
                dangling.append((_Check(name, kind, path, target, (path,)), None))
    for path, status in files.items():
        if not path.startswith(blobs) or path.endswith(".incomplete"):
            continue
        if commits is not None and path not in wanted:
            continue
        etag = path[len(blobs) :]
        check = _Check(name, kind, path, etag, tuple(links.get(path, ())))
        if status is None and not os.path.exists(path):
            dangling.append((check, None))
        elif not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", etag) or (
            status is None and stored_file(path, repo.parent) is None
        ):
            unchecked.append(path)
        else:
            checks.append(check)


def _gather_item(item: CachedItem, checks: list[_Check], unchecked: list[str]) -> None:
    if item.store == "torch" and (match := _TORCH_HASH.fullmatch(item.name)):
        checks.append(_Check(item.name, item.kind, item.files[0], match[1]))
    elif not item.is_repo:
        unchecked.extend(item.files)


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
    # checking a file is no use of it, so its access time should stay as it is
    try:
        return os.open(path, flags | getattr(os, "O_NOATIME", 0))
    except PermissionError:
        return os.open(path, flags)  # only the owner may ask for that


def _problem(check: _Check, actual: str | None, in_use: InUse | None, root: Path) -> Problem:
    """Return what is wrong with a file; `in_use` is None unless it is to be repaired."""
    expected = None if check.path in check.links else check.expected
    path = Path(check.path).relative_to(root).as_posix()
    why = None if in_use is None else _repair(check, in_use)
    repaired = in_use is not None and why is None
    return Problem(check.name, check.kind, path, expected, actual, repaired, why)


def _repair(check: _Check, in_use: InUse) -> str | None:
    hub = Path(check.path).parent.parent.parent
    stored = stored_file(check.path, hub) if os.path.islink(check.path) else None
    paths = [*check.links, *([] if check.path in check.links else [check.path])]
    paths += [] if stored is None else [stored]
    for path in paths:
        if (owner := in_use.owner_of(Path(path))) is not None:
            return f"is in use by {owner}"
    # links first: a snapshot must never lead to content that is gone
    problems = [why for path in paths if (why := remove_file(path)) is not None]
    return next(iter(problems), None)
