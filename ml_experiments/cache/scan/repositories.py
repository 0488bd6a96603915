"""Reading the folder of one repository, as huggingface_hub lays it out.

    models--org--name/
      blobs/<etag>                     contents
      snapshots/<commit>/<path>        links to blobs, or copies of them
      refs/<branch or tag>             commit hashes

huggingface_hub's own scan fails for the whole cache at a FIFO or a ref that isn't UTF-8, and
leaves out a repository whose ref or link leads to nothing. This one reads what is there, and
lists the rest as damage.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from ml_experiments.cache.disk import (
    Files,
    bytes_held,
    link_target,
    list_files,
    read_file,
    subfolders,
)
from ml_experiments.cache.items import CachedFile, CachedItem, CachedRevision, Damage, Store
from ml_experiments.cache.layout import Kind, is_real_folder

# what an operating system puts into any folder
_IGNORED = (".DS_Store", "Thumbs.db", "desktop.ini")
# what a download leaves that failed before its first file
_PARTS_WITHOUT_REVISIONS = ("blobs", "refs", "trees", ".no_exist")
_REF_CONTENT = re.compile(rb"(\w[\w.-]*)(\s*)")
_MAX_REF_BYTES = 256
_SHOWN_DIGITS = 8

Blobs = dict[str, os.stat_result]


def read_repo(
    folder: Path, kind: Kind, name: str, store: Store, uses: Mapping[tuple[str, str], float]
) -> CachedItem | None:
    """Return a repository, or None if its folder holds something else.

    Args:
        folder: Its folder, which must not be reached by a symbolic link.
        kind: Its kind.
        name: Its name on the Hub.
        store: Which part of the cache the folder is in.
        uses: When runs last used a revision, by repository folder and commit.
    """
    files = list_files(str(folder))
    snapshots = folder / "snapshots"
    commits = subfolders(str(snapshots)) if is_real_folder(snapshots, folder) else []
    if not commits:
        return _read_unfinished(folder, kind, name, store, files)
    start = f"{folder}{os.sep}"
    blobs: Blobs = {}
    by_commit: dict[str, list[tuple[str, os.stat_result | None]]] = {c: [] for c in commits}
    for path, status in files.items():
        part, _, rest = path[len(start) :].partition(os.sep)
        if part == "blobs" and status is not None and not is_incomplete(path):
            blobs[path] = status
        elif part == "snapshots" and (commit := rest.partition(os.sep)[0]) in by_commit:
            by_commit[commit].append((path, status))
    refs, damage = _read_refs(folder, files, commits)
    revisions = []
    for commit, entries in by_commit.items():
        found, dangling = _read_snapshot(entries, f"{start}blobs{os.sep}", blobs)
        damage += dangling
        recorded = uses.get((folder.name, commit), 0.0)
        revisions.append(
            _revision(snapshots / commit, refs.get(commit, []), found, blobs, recorded)
        )
    revisions.sort(key=lambda r: (-r.last_modified, r.commit))
    return CachedItem(
        name=name,
        kind=kind,
        store=store,
        path=folder,
        bytes=sum(status.st_size for status in blobs.values()),
        file_count=len({file.blob for revision in revisions for file in revision.files}),
        last_used=max(revision.last_used for revision in revisions),
        revisions=tuple(revisions),
        damage=tuple(damage),
        files=files,
        blobs=blobs,
    )


def is_incomplete(path: str) -> bool:
    """Return whether a file is a part of a download that goes on or was interrupted."""
    return path.endswith(".incomplete")


def read_ref(path: str | os.PathLike[str]) -> tuple[str | None, bool]:
    """Return the commit that a branch or tag names, if it does, and whether it holds only that."""
    content = _REF_CONTENT.fullmatch(read_file(path, _MAX_REF_BYTES) or b"")
    return (None, False) if content is None else (content[1].decode(), not content[2])


def _read_refs(
    folder: Path, files: Files, commits: list[str]
) -> tuple[dict[str, list[str]], list[Damage]]:
    """Return the names of branches and tags by commit, and those that lead to none of `commits`."""
    start = f"{folder}{os.sep}refs{os.sep}"
    refs: dict[str, list[str]] = {}
    damage = []
    for path in sorted(files):
        if not path.startswith(start) or os.path.basename(path) in _IGNORED:
            continue
        commit, is_exact = read_ref(path)
        if commit in commits:
            refs.setdefault(commit, []).append(path[len(start) :])
        if commit is None:
            damage.append(Damage(path, "does not name a revision"))
        elif commit not in commits:
            damage.append(
                Damage(path, f"names the revision {commit[:_SHOWN_DIGITS]}, which is not here")
            )
        elif not is_exact:  # which huggingface_hub compares with the commit as it is
            damage.append(Damage(path, "has white space after the commit hash"))
    return refs, damage


def _read_snapshot(
    entries: list[tuple[str, os.stat_result | None]], own_blobs: str, blobs: Blobs
) -> tuple[list[CachedFile], list[Damage]]:
    """Return the files of a revision, and its links to blobs that are missing.

    The status of each blob that isn't in `blobs` yet is added there.
    """
    found: list[CachedFile] = []
    damage: list[Damage] = []
    for path, status in entries:
        blob = path if status is not None else link_target(path)
        if blob is None or os.path.basename(path) in _IGNORED:
            continue  # neither a file nor a link
        if blob not in blobs:
            try:
                status = status or os.stat(blob)
            except FileNotFoundError:
                if blob.startswith(own_blobs) and not os.path.lexists(blob):
                    damage.append(Damage(path, "leads to content that is missing"))
                continue
            except OSError:
                continue  # in a folder that can't be read, or a loop of links
            if not stat.S_ISREG(status.st_mode):
                continue
            blobs[blob] = status
        found.append(CachedFile(path, blob, blobs[blob].st_size))
    return sorted(found, key=lambda file: file.path), damage


def _revision(
    snapshot: Path, refs: list[str], files: list[CachedFile], blobs: Blobs, recorded: float
) -> CachedRevision:
    statuses = [blobs[blob] for blob in {file.blob for file in files}]
    modified = max((s.st_mtime for s in statuses), default=_modified(snapshot))
    accessed = max((s.st_atime for s in statuses), default=0.0)
    return CachedRevision(
        commit=snapshot.name,
        refs=tuple(refs),
        bytes=sum(s.st_size for s in statuses),
        file_count=len(files),
        last_used=max(accessed, recorded, modified),
        last_modified=modified,
        files=tuple(files),
    )


def _read_unfinished(
    folder: Path, kind: Kind, name: str, store: Store, files: Files
) -> CachedItem | None:
    """Return a repository without any revision, or None if its folder holds anything else."""
    start = f"{folder}{os.sep}"
    for path, status in files.items():
        part, _, rest = path[len(start) :].partition(os.sep)
        is_foreign = status is None and part != "refs"  # which are removed, never followed
        if is_foreign or part not in _PARTS_WITHOUT_REVISIONS or not rest:
            return None
    whole = {path: s for path, s in files.items() if not is_incomplete(path)}
    times = [status.st_mtime for status in files.values() if status is not None]
    return CachedItem(
        name=name,
        kind=kind,
        store=store,
        path=folder,
        bytes=bytes_held(whole),
        file_count=0,
        last_used=max([_modified(folder), *times]),
        files=files,
        blobs={path: status for path, status in whole.items() if status is not None},
    )


def _modified(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0  # deleted since the scan began
