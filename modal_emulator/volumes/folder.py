"""The committed content of one volume, stored as a folder."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modal_emulator.storage.file_copy import copy_file
from modal_emulator.storage.ids import new_id
from modal_emulator.volumes.changes import Change, Delete, MakeFolder, Write, walk
from modal_emulator.volumes.limit import VolumeLimit
from modal_emulator.volumes.paths import resolve, split_path
from modal_emulator.volumes.snapshots import VolumeSnapshots


@dataclass(frozen=True)
class Upload:
    """A file that a client uploaded: `write` creates it at the path that is passed to it."""

    path: str
    size: int
    write: Callable[[Path], None]


class VolumeFolder:
    """The content of a volume and all operations on it; thread-safe.

    A file of the content is never written to, only replaced, because downloads share its inode.
    """

    def __init__(self, folder: Path) -> None:
        self.content = folder / "content"
        self.limit = VolumeLimit()
        self._incoming = folder / "incoming"
        self._lock = threading.RLock()
        self.content.mkdir(parents=True, exist_ok=True)
        self._snapshots = VolumeSnapshots(self.content, folder)
        # files of a server that was killed
        shutil.rmtree(self._incoming, ignore_errors=True)
        self._incoming.mkdir()

    def take_snapshot(self) -> Path:
        """Return a folder with the current content; call `drop_snapshot` after use."""
        with self._lock:
            return self._snapshots.take()

    def drop_snapshot(self, snapshot: Path) -> None:
        """End the use of a snapshot that `take_snapshot` returned."""
        with self._lock:
            self._snapshots.drop(snapshot)

    def take_download(self, path: str) -> Path:
        """Return a file with the current content of a file, which is kept for an hour.

        Raises:
            FileNotFoundError: If there is no such file.
            IsADirectoryError: If it is a folder.
        """
        with self._lock:
            source = resolve(self.content, path)
            if not source.exists():
                raise FileNotFoundError(f"No such file in the volume: '{path}'")
            if not source.is_file():
                raise IsADirectoryError(f"'{path}' is not a file")
            return self._snapshots.take_download(source)

    def list_entries(self, path: str, *, recursive: bool) -> list[tuple[str, os.stat_result]]:
        """Return paths and status of everything in a folder, or of one file.

        Raises:
            FileNotFoundError: If there is no such file or folder.
        """
        with self._lock:
            at = resolve(self.content, path)
            shown = "/".join(split_path(path))
            if not at.exists():
                raise FileNotFoundError(f"No such file or directory in the volume: '{path}'")
            if not at.is_dir():
                return [(shown, at.lstat())]
            prefix = shown + "/" if shown else ""
            found = walk(at, prefix, recursive=recursive)
            listed = [(name, entry.stat(follow_symlinks=False)) for name, entry in found]
        return sorted(listed, key=lambda each: each[0])

    def make_folder(self, path: str) -> None:
        """Create a folder unless it exists."""
        with self._lock:
            folder = resolve(self.content, path)
            if not folder.is_dir():
                with self._changing():
                    folder.mkdir(parents=True, exist_ok=True)

    def check(self, uploads: Sequence[Upload], *, overwrite: bool) -> list[Path]:
        """Return the paths that uploads would be written to.

        Raises:
            FileExistsError: If there is a file already, and `overwrite` is False.
            IsADirectoryError: If there is a folder.
            VolumeFullError: If there is no room.
        """
        with self._lock:
            targets = [resolve(self.content, each.path) for each in uploads]
            for each, target in zip(uploads, targets, strict=True):
                if target == self.content or target.is_dir():
                    raise IsADirectoryError(f"'{each.path}' is a folder in the volume")
                if target.exists() and not overwrite:
                    raise FileExistsError(f"'{each.path}' already exists; overwrite it with force")
            self.limit.check(self.content, (each.size for each in uploads), targets)
        return targets

    def put(self, uploads: Sequence[Upload], *, overwrite: bool) -> None:
        """Write uploaded files to their paths; raises what `check` raises."""
        with self._changing():
            targets = self.check(uploads, overwrite=overwrite)
            for each, target in zip(uploads, targets, strict=True):
                self._make_parents(each.path, target)
                self._replace(target, each.write)

    def remove(self, path: str, *, recursive: bool) -> None:
        """Delete a file, a link, or with `recursive` a folder.

        Raises:
            FileNotFoundError: If there is nothing at the path.
            IsADirectoryError: If it is a folder, and `recursive` is False.
        """
        with self._changing():
            target = resolve(self.content, path, follow_last=False)
            if not os.path.lexists(target):
                raise FileNotFoundError(f"No such file or directory in the volume: '{path}'")
            if not _is_folder(target):
                target.unlink()
            elif not recursive:
                raise IsADirectoryError(f"'{path}' is a folder; delete it with recursive")
            else:
                shutil.rmtree(target)
                self.content.mkdir(exist_ok=True)

    def copy(self, sources: Sequence[str], destination: str, *, recursive: bool) -> None:
        """Copy files as `cp` does, and with `recursive` folders as `cp -r` does.

        Raises:
            FileNotFoundError: If there is no such source.
            IsADirectoryError: If a source is a folder and `recursive` is False.
            NotADirectoryError: If the destination has to be a folder, and is none.
            ValueError: If a folder would be copied into itself.
            VolumeFullError: If there is no room.
        """
        with self._changing():
            into = resolve(self.content, destination)
            into_folder = into.is_dir()
            if not into_folder and (len(sources) > 1 or destination.endswith("/")):
                raise NotADirectoryError(f"'{destination}' is not a folder in the volume")
            for path in sources:
                source = resolve(self.content, path)
                if not source.exists():
                    raise FileNotFoundError(f"No such file or directory in the volume: '{path}'")
                target = into / source.name if into_folder else into
                self._copy_one(path, source, target, recursive=recursive)

    def apply(self, changes: Sequence[Change], below: str) -> None:
        """Apply the changes of a container in the folder `below`, over those of other containers.

        Raises:
            VolumeFullError: If there is no room; then no change is applied.
        """
        if not changes:
            return
        with self._changing():
            gone = (self.content / below / each.path for each in changes)
            self.limit.check(self.content, _sizes(changes), gone)
            for change in changes:
                path = f"{below}/{change.path}".lstrip("/")
                if isinstance(change, Delete):
                    self._delete(path)
                elif isinstance(change, MakeFolder):
                    # root in a container can do without these permissions, this server can't
                    self._real_folder(path).chmod(change.mode | stat.S_IRWXU)
                else:
                    self._write(path, change)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            finally:
                self._snapshots.content_changed()

    def _copy_one(self, path: str, source: Path, target: Path, *, recursive: bool) -> None:
        if not source.is_dir():
            if _is_folder(target):
                raise IsADirectoryError(f"'{path}' can't be copied over a folder of its name")
            self.limit.check(self.content, [source.stat().st_size], [target])
            self._make_parents(path, target)
            self._replace(target, lambda incoming: copy_file(source, incoming))
        elif not recursive:
            raise IsADirectoryError(f"'{path}' is a folder; copy it with recursive")
        elif target.is_relative_to(source):
            raise ValueError(f"'{path}' can't be copied into itself")
        else:
            self._copy_folder(source, target.relative_to(self.content).as_posix())

    def _copy_folder(self, source: Path, destination: str) -> None:
        copies: list[Change] = [MakeFolder(destination, stat.S_IMODE(source.stat().st_mode))]
        for path, entry in walk(source, f"{destination}/"):
            mode = entry.stat(follow_symlinks=False).st_mode
            is_folder = stat.S_ISDIR(mode)
            copy = (
                MakeFolder(path, stat.S_IMODE(mode)) if is_folder else Write(path, Path(entry.path))
            )
            copies.append(copy)
        self.apply(copies, "")

    def _write(self, path: str, change: Write) -> None:
        parent, _, name = path.rpartition("/")
        target = self._real_folder(parent) / name
        try:
            self._replace(target, lambda incoming: copy_file(change.source, incoming))
        except FileNotFoundError:
            # just deleted by the container, which the next commit will record
            return

    def _delete(self, path: str) -> None:
        target = self.content / path
        if any(parent.is_symlink() for parent in self._parents(target)):
            return
        try:
            target.rmdir() if _is_folder(target) else target.unlink(missing_ok=True)
        except NotADirectoryError:
            return
        except OSError as e:
            # another container's files are in the folder
            if e.errno != errno.ENOTEMPTY:
                raise

    def _real_folder(self, path: str) -> Path:
        """Return a folder of the content, created in place of any other file at its path."""
        at = self.content
        for name in split_path(path):
            at = at / name
            if not _is_folder(at):
                at.unlink(missing_ok=True)
                at.mkdir()
        return at

    def _parents(self, target: Path) -> list[Path]:
        return [each for each in target.parents if each.is_relative_to(self.content)]

    def _make_parents(self, path: str, target: Path) -> None:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as e:
            message = f"A folder on the way to '{path}' is a file in the volume"
            raise NotADirectoryError(message) from e

    def _replace(self, target: Path, write: Callable[[Path], None]) -> None:
        incoming = self._incoming / new_id("incoming")
        try:
            write(incoming)
            if _is_folder(target):
                shutil.rmtree(target)
            incoming.replace(target)
        finally:
            incoming.unlink(missing_ok=True)


def _sizes(changes: Sequence[Change]) -> Iterator[int]:
    for change in changes:
        # a file that the container has just deleted will not be written
        if isinstance(change, Write) and os.path.lexists(change.source):
            yield change.source.lstat().st_size


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
