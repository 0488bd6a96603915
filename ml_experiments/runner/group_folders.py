"""Folders of groups of runs, such as a sweep: made whole, and found by id, name or `last`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ml_experiments.errors import RunFolderError, RunNotFoundError, suggest
from ml_experiments.runs.folder import make_runs_dir

_MAX_SUGGESTED = 100


class _Group(Protocol):
    @property
    def path(self) -> Path: ...

    def read_spec(self) -> Any: ...


Group = TypeVar("Group", bound=_Group)


def make_group_folder(path: Path, write_spec: Callable[[Path], object], kind: str) -> None:
    """Make the folder of a new group; it appears with its spec, or not at all.

    Args:
        path: The folder.
        write_spec: Writes the spec into the folder that it is given.
        kind: What it is, such as `sweep`.

    Raises:
        RunFolderError: If it can't be written.
    """
    draft = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
    try:
        make_runs_dir(path.parent)
        draft.mkdir()
        write_spec(draft)
        draft.rename(path)
    except OSError as e:
        shutil.rmtree(draft, ignore_errors=True)
        raise RunFolderError(
            f"the folder {path} of the {kind} can't be written: {e.strerror}"
        ) from e


def find_group(
    groups: Sequence[Group], runs_dir: Path, reference: str, kind: str, plural: str
) -> Group:
    """Return the group of an id, the beginning of one, a name, or `last`.

    Args:
        groups: All of them, the newest first.
        runs_dir: Where they are, for the message.
        reference: What the user wrote.
        kind: What they are, such as `sweep`.
        plural: The same for several.

    Raises:
        RunNotFoundError: If none or several match.
    """
    if not groups:
        raise RunNotFoundError(f"there are no {plural} in {runs_dir}")
    if reference == "last":
        return groups[0]
    matching = [group for group in groups if reference and group.path.name.startswith(reference)]
    matching = matching or [group for group in groups if _name_of(group) == reference]
    if len(matching) == 1:
        return matching[0]
    if matching:
        names = ", ".join(group.path.name for group in matching[:3])
        raise RunNotFoundError(
            f"{reference!r} matches {len(matching)} {plural}, among them {names}"
        )
    known = ["last", *(group.path.name for group in groups[:_MAX_SUGGESTED])]
    raise RunNotFoundError(
        f"no {kind} in {runs_dir} has the id or the name {reference!r}{suggest(reference, known)}"
    )


def _name_of(group: _Group) -> str | None:
    try:
        name: str | None = group.read_spec().name
    except RunFolderError:
        return None
    return name
