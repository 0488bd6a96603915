"""Writes caches in the layout of huggingface_hub, and takes their measure.

`write_repo()` is for the many small caches of property tests and the large ones of benchmarks;
a test compares what it writes with what huggingface_hub itself writes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.utils import _shared_blobs

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.scan.scanning import scan

_LFS_SUFFIX = ".safetensors"


def commit_of(text: str) -> str:
    """Return a commit hash."""
    return hashlib.sha1(text.encode()).hexdigest()


def etag_of(name: str, content: bytes) -> str:
    """Return the name of a blob: sha256 of a large file, git's own sha1 of any other."""
    if name.endswith(_LFS_SUFFIX):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write_repo(
    hub: Path,
    name: str,
    revisions: Mapping[str, Mapping[str, bytes]],
    *,
    refs: Mapping[str, str] | None = None,
    kind: str = "model",
) -> Path:
    """Write a repository as a download does: blobs, links to them by revision, branches.

    Args:
        hub: The hub folder.
        name: As on the Hub.
        revisions: Contents by path, by commit hash.
        refs: Commit hashes by branch or tag; main is the first revision by default.
        kind: model, dataset or space.
    """
    repo = hub / f"{kind}s--{name.replace('/', '--')}"
    (repo / "blobs").mkdir(parents=True, exist_ok=True)
    for commit, files in revisions.items():
        snapshot = repo / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            blob = repo / "blobs" / etag_of(path, content)
            if not blob.exists():
                blob.write_bytes(content)
            link = snapshot / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    named = {"main": next(iter(revisions))} if refs is None and revisions else refs or {}
    for ref, commit in named.items():
        file = repo / "refs" / ref
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit)
    return repo


def share_blobs(hub_dir: Path, *names: str) -> Path:
    """Let huggingface_hub move the weights of repositories into its shared store."""
    xet_hash = "ab" + "0" * 62
    for name in names:
        [blob] = (p for p in (hub_dir / f"models--{name}" / "blobs").iterdir() if len(p.name) == 64)
        shared = _shared_blobs.publish_blob_to_shared_store(
            blob_path=str(blob),
            xet_hash=xet_hash,
            cache_dir=hub_dir,
            expected_size=blob.stat().st_size,
        )
        assert shared
    return hub_dir / "blobs" / "ab" / xet_hash


def model_names(cache_dir: Path) -> list[str]:
    """Return the names of the models in a cache that have a file, sorted, each once."""
    items = scan(cache_dir).items
    return sorted({item.name for item in items if item.kind == "model" and item.file_count})


def set_age(folder: Path, days: float) -> None:
    """Make everything below a folder as old as this."""
    moment = time.time() - days * 86400
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (moment, moment), follow_symlinks=False)


def bytes_on_disk(folder: Path) -> int:
    """Return what the regular files below a folder hold, each inode once."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            status = Path(parent, name).lstat()
            if stat.S_ISREG(status.st_mode):
                sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the content of everything below a folder: hashes of files, targets of links."""
    found = {}
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            if path.is_symlink():
                found[str(path)] = f"-> {path.readlink()}"
            elif path.is_dir():
                found[str(path)] = "folder"
            elif not path.is_file():
                found[str(path)] = "neither a file nor a folder"
            else:
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def delete(cache_dir: Path, pattern: str | None = None, **filters: Any) -> dict[str, Any]:
    """Plan and execute, and check that the bytes are those of the disk."""
    before = bytes_on_disk(cache_dir)
    outcome = plan_deletion(cache_dir, pattern, **filters).execute().to_dict()
    assert outcome["freed_bytes"] == before - bytes_on_disk(cache_dir)
    assert outcome["freed_mb"] == outcome["freed_bytes"] / 1e6
    return outcome
