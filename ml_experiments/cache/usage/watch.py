"""Which cached revisions a run used, seen while it runs.

An audit hook sees every file that Python opens, links or renames, so a run is charged with what
it did itself, never with what other processes did to the same cache meanwhile, and nothing has
to be scanned before or after. Access times would not do: many mounts don't keep them.

Weights may be opened outside Python (safetensors is Rust). Such a model still counts, because
its config is read in Python, or huggingface_hub reads the branch that leads to it, or its file
is still mapped into memory when the run ends. Not seen: what subprocesses open, and weights
alone, pinned to a commit, read outside Python, and released before the end.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ml_experiments.cache.disk import link_target
from ml_experiments.cache.layout import find_layout, repo_folder
from ml_experiments.cache.open_files import open_files
from ml_experiments.cache.scan.repositories import read_ref

_RESOLVING_MODULES = ("file_download.py", "_snapshot_download.py")
_FRAMES_LOOKED_AT = 8


@dataclass(frozen=True)
class UsedRevision:
    """A revision that a run used.

    Attributes:
        bytes: What its files in the cache hold.
        hit: Whether all of it was there; False if the run downloaded any of it.
    """

    repo_id: str
    kind: str
    revision: str
    bytes: int
    hit: bool

    @property
    def folder(self) -> str:
        """The repository's folder in a hub folder."""
        return repo_folder(self.repo_id, self.kind)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON, an entry of `cached_models` in a run's manifest."""
        return {
            "repo_id": self.repo_id,
            "kind": self.kind,
            "revision": self.revision,
            "bytes": self.bytes,
            "hit": self.hit,
        }


class CacheWatch:
    """Watches, while its `with` block runs, which cached revisions this process uses.

    Args:
        cache_dir: The cache folder.
        on_first_use: Hears of a repository, as `models--org--name`, when the first of its files
            is used. It is called in an audit hook: it must return at once and not raise.
    """

    def __init__(
        self, cache_dir: str | Path, on_first_use: Callable[[str], None] | None = None
    ) -> None:
        layout = find_layout(cache_dir)
        self._on_first_use = on_first_use
        self._repos: set[str] = set()
        self._root = layout.root
        self._prefixes = tuple(f"{folder}{os.sep}" for folder in layout.hub_folders)
        # who opens files by the folder's own name may go through a symbolic link
        given = os.path.abspath(os.path.expanduser(cache_dir))
        is_linked = given != str(layout.root)
        self._linked_root = f"{given}{os.sep}" if is_linked else None
        self._snapshots: set[tuple[str, str]] = set()
        self._refs: set[str] = set()
        self._blobs: set[str] = set()
        self._downloaded: set[str] = set()

    def __enter__(self) -> Self:
        _install_hook()
        _watching.add(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _watching.discard(self)

    def used(self) -> tuple[UsedRevision, ...]:
        """Return what was used so far, sorted by name and revision."""
        snapshots = set(self._snapshots)
        for ref in self._refs:
            commit, _ = read_ref(ref)
            if commit is not None:  # else removed since; what was opened of it is in `snapshots`
                snapshots.add((ref.partition(f"{os.sep}refs{os.sep}")[0], commit))
        has_cache = any(os.path.isdir(folder) for folder in self._prefixes)
        files = open_files(self._root, pids=[os.getpid()]) if has_cache else ()
        mapped = {file for file in files if _part(file) == "blobs"}
        for blob in mapped | self._blobs:
            snapshots |= _snapshots_with(blob)
        found = [self._describe(repo, commit) for repo, commit in snapshots]
        return tuple(sorted(found, key=lambda u: (u.kind, u.repo_id, u.revision)))

    def see(self, event: str, path: str, source: str) -> None:
        """Take note of one audit event on a path; it must not raise."""
        if self._linked_root is not None and path.startswith(self._linked_root):
            path = os.path.join(self._root, path[len(self._linked_root) :])
        if not path.startswith(self._prefixes):
            return
        repo, part, rest = _split(path)
        if part == "snapshots" and rest:
            self._snapshots.add((repo, rest.partition(os.sep)[0]))
            if event == "os.rename":
                self._downloaded.add(path)
        elif part == "refs" and event == "open" and _is_resolving():
            self._refs.add(path)
        elif part == "blobs" and event == "os.rename" and source.endswith(".incomplete"):
            self._downloaded.add(path)
        elif part == "blobs" and event == "open" and not path.endswith(".incomplete"):
            self._blobs.add(path)
        else:
            return
        if repo not in self._repos:
            self._repos.add(repo)
            if self._on_first_use is not None:
                self._on_first_use(os.path.basename(repo))

    def _describe(self, repo: str, commit: str) -> UsedRevision:
        sizes: dict[str, int] = {}
        hit = True
        for folder, _, names in os.walk(os.path.join(repo, "snapshots", commit)):
            for name in names:
                file = os.path.join(folder, name)
                blob = link_target(file) or file
                hit = hit and file not in self._downloaded and blob not in self._downloaded
                try:
                    sizes[blob] = os.stat(file).st_size
                except OSError:
                    continue  # its content is gone: it holds nothing
        kind, _, name = os.path.basename(repo).partition("s--")
        return UsedRevision(name.replace("--", "/"), kind, commit, sum(sizes.values()), hit)


_watching: set[CacheWatch] = set()
_hook_lock = threading.Lock()
_hook_is_installed = False


def _install_hook() -> None:
    """Add the hook once per process: Python has no way to remove one."""
    global _hook_is_installed
    with _hook_lock:
        if not _hook_is_installed:
            sys.addaudithook(_hook)
            _hook_is_installed = True


def _hook(event: str, args: tuple[Any, ...]) -> None:
    # called for every audit event of the process, so the usual way out comes first;
    # an exception here would make the audited call itself fail
    if not _watching:
        return
    if event == "open":
        path, source = args[0], ""
    elif event in ("os.symlink", "os.rename"):
        path, source = args[1], args[0]
    else:
        return
    if not isinstance(path, str):
        if not isinstance(path, (bytes, Path)):
            return  # a file descriptor
        path = os.fsdecode(path)
    for watch in tuple(_watching):
        watch.see(event, path, str(source))


def _split(path: str) -> tuple[str, str, str]:
    """Split `<hub>/<repo>/<part>/<rest>` into the repository's folder, part and rest."""
    for part in ("snapshots", "refs", "blobs"):
        repo, found, rest = path.partition(f"{os.sep}{part}{os.sep}")
        if found and "--" in os.path.basename(repo):
            return repo, part, rest
    return "", "", ""


def _part(path: str) -> str:
    return _split(path)[1]


def _is_resolving() -> bool:
    """Return whether huggingface_hub reads a branch to find a file, not to list the cache."""
    frame = sys._getframe(2)
    for _ in range(_FRAMES_LOOKED_AT):
        if frame.f_code.co_filename.endswith(_RESOLVING_MODULES):
            return True
        if frame.f_back is None:
            return False
        frame = frame.f_back
    return False


def _snapshots_with(blob: str) -> set[tuple[str, str]]:
    repo = _split(blob)[0]
    found = set()
    snapshots = os.path.join(repo, "snapshots")
    for folder, _, names in os.walk(snapshots):
        if any(link_target(os.path.join(folder, name)) == blob for name in names):
            found.add((repo, os.path.relpath(folder, snapshots).partition(os.sep)[0]))
    return found
