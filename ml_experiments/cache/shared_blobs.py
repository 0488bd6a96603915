"""huggingface_hub's cache-wide blob store: what is in it and what a deletion frees.

Since version 2, `<hub>/blobs/<xx>/<hash>` holds a file once for all repositories; the `blobs/`
of each links to it, and `<hash>.refs` lists those links. huggingface_hub itself removes a
stored file when the last link goes; here that is foreseen, so that a plan names true bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ml_experiments.cache.disk import bytes_held, link_target, list_files, read_file, stat_files
from ml_experiments.cache.layout import SHARED_BLOBS_FOLDER, is_real_folder

_MARKER = ".huggingface-shared-blobs"
_KNOWN_LAYOUT = b"1\n"
_MAX_LIST_BYTES = 100_000_000
_STORED = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})")


def is_known_store(hub: Path) -> bool:
    """Return whether a hub folder's blob store is in the layout that is understood here."""
    store = hub / SHARED_BLOBS_FOLDER
    return is_real_folder(store, hub) and read_file(store / _MARKER, 10) == _KNOWN_LAYOUT


def list_stored(hub: Path) -> list[os.stat_result]:
    """Return the status of each file in a hub folder's blob store."""
    store = f"{hub / SHARED_BLOBS_FOLDER}{os.sep}"
    return [
        status
        for path, status in list_files(store[:-1]).items()
        if status is not None and _STORED.fullmatch(path[len(store) :])
    ]


def stored_file(link: str, hub: Path) -> str | None:
    """Return the stored file that a blob links to, or None if it links anywhere else."""
    target = link_target(link)
    prefix = f"{hub}{os.sep}{SHARED_BLOBS_FOLDER}{os.sep}"
    if target is None or not target.startswith(prefix):
        return None
    if not _STORED.fullmatch(target[len(prefix) :]):
        return None
    return target if os.path.isfile(target) and not os.path.islink(target) else None


@dataclass
class StoreForecast:
    """Foresees what huggingface_hub removes from the store as links to it go, in order."""

    hub: Path
    _references: dict[str, set[str] | None] = field(default_factory=dict)
    _list_size: dict[str, int] = field(default_factory=dict)

    def drop(self, links: Mapping[str, str]) -> int:
        """Return the bytes freed in the store by removing these links, given as link → file."""
        by_file: dict[str, set[str]] = {}
        for link, stored in links.items():
            by_file.setdefault(stored, set()).add(link)
        return sum(self._drop(stored, gone) for stored, gone in by_file.items())

    def _drop(self, stored: str, gone: set[str]) -> int:
        if stored not in self._references:
            self._read(stored)
        references = self._references[stored]
        if references is None:
            return 0  # without its list a stored file is never removed
        references -= gone
        previous = self._list_size[stored]
        self._list_size[stored] = sum(
            len(os.fsencode(os.path.relpath(link, self.hub))) + 1 for link in references
        )
        held = 0 if references else bytes_held(stat_files([stored]))
        return previous - self._list_size[stored] + held

    def _read(self, stored: str) -> None:
        content = read_file(f"{stored}.refs", _MAX_LIST_BYTES)
        if content is None:
            self._references[stored] = None
            return
        lines = os.fsdecode(content).splitlines()
        links = {os.path.join(self.hub, line) for line in lines if ".." not in line}
        self._references[stored] = {link for link in links if stored_file(link, self.hub) == stored}
        self._list_size[stored] = len(content)
