"""Downloads over plain HTTP that go on in the middle of a file, even after they were killed.

huggingface_hub gives every attempt a temporary file of its own and removes it on failure. Here a
file grows in `blobs/<etag>.incomplete`, the name that older versions of huggingface_hub used and
that a scan knows as an interrupted download, under huggingface_hub's own lock. Once its hash is
right it becomes `blobs/<etag>`, where huggingface_hub finds it and links to it.

Files that come by Xet are not for this: their parts arrive out of order.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from io import BufferedRandom
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata
from huggingface_hub.file_download import http_get, is_xet_available
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import WeakFileLock, build_hf_headers

from ml_experiments.cache.layout import LOCKS_FOLDER
from ml_experiments.cache.pull.progress import ProgressMeter, silent_bar
from ml_experiments.errors import CacheError

_FILES_AT_ONCE = 8  # as many as snapshot_download
_LOCK_CHECK_S = 0.5
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def etag_of(file: RepoFile) -> str:
    """Return the hash that names a file's blob: sha256 in git-lfs, else git's own sha1."""
    return str(file.blob_id if file.lfs is None else file.lfs.sha256)


def comes_by_xet(file: RepoFile) -> bool:
    """Return whether huggingface_hub downloads a file by Xet, not over plain HTTP."""
    return file.xet_hash is not None and is_xet_available()


class ResumableDownload:
    """Downloads those of a repository's files that can be resumed, several at a time.

    Attributes:
        kept: How many bytes of each an interrupted download has left, by path.
    """

    def __init__(
        self,
        repo: Path,
        commit: str,
        files: Sequence[RepoFile],
        url_of: Callable[[RepoFile], str],
        token: str | bool | None,
    ) -> None:
        self._repo = repo
        self._commit = commit
        # nothing is left behind a link, where a scan doesn't look
        is_linked = repo.is_symlink() or (repo / "blobs").is_symlink()
        self._files = [file for file in files if not is_linked and _is_resumable(file)]
        self._url_of = url_of
        # ranges count bytes of the file, not of what a server may compress it to
        self._headers = {**build_hf_headers(token=token), "Accept-Encoding": "identity"}
        self._stop = threading.Event()
        self.kept = {file.path: self._count_kept(file) for file in self._files}

    def fetch(self, meter: ProgressMeter) -> dict[str, int]:
        """Download the files and return how many bytes of each arrived now, by path.

        A file that the Hub doesn't name by its hash is left out. When one file fails, the others
        stop; what has arrived of each is kept.

        Raises:
            CacheError: If a file's content is not what the Hub announced.
            httpx2.HTTPError: If the Hub refuses, or the connection is lost for good.
            OSError: If the disk can't be written to.
        """
        if not self._files:
            return {}
        for path, count in self.kept.items():
            meter.reach(path, count)
        # a scan takes a repository without this folder for a damaged one
        (self._repo / "snapshots" / self._commit).mkdir(parents=True, exist_ok=True)
        (self._repo / "blobs").mkdir(exist_ok=True)
        self._locks.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            futures = {pool.submit(self._fetch, file, meter): file.path for file in self._files}
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:  # Ctrl-C too
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        arrived = {path: future.result() for future, path in futures.items()}
        return {path: count for path, count in arrived.items() if count is not None}

    @property
    def _locks(self) -> Path:
        return self._repo.parent / LOCKS_FOLDER / self._repo.name

    def _fetch(self, file: RepoFile, meter: ProgressMeter) -> int | None:
        metadata = get_hf_file_metadata(
            self._url_of(file), token=False, headers=self._headers, retry_on_errors=True
        )
        etag = etag_of(file)
        if metadata.etag != etag:
            return None  # huggingface_hub would look for the blob under another name
        blob = self._repo / "blobs" / etag
        with ExitStack() as stack:
            while True:
                try:
                    lock = WeakFileLock(self._locks / f"{etag}.lock", timeout=_LOCK_CHECK_S)
                    stack.enter_context(lock)
                    break
                except TimeoutError:  # another process downloads it: how far it is, counts for us
                    meter.reach(file.path, self._count_kept(file))
                    self._check_stop()
            arrived = 0 if blob.exists() else self._complete(file, blob, meter)
        meter.reach(file.path, file.size)
        return arrived

    def _complete(self, file: RepoFile, blob: Path, meter: ProgressMeter) -> int:
        """Download what is missing of a file, all of it if what is there is wrong."""
        arrived = 0

        def on_bytes(position: int, added: int) -> None:
            nonlocal arrived
            self._check_stop()
            arrived += max(added, 0)  # it goes back when a server can't resume
            meter.reach(file.path, position)

        partial = self._partial(file)
        while True:
            kept = self._count_kept(file)
            if not kept:
                partial.unlink(missing_ok=True)
            with _open_partial(partial) as stream:
                stream.seek(kept)
                http_get(
                    self._url_of(file),
                    stream,
                    resume_size=kept,
                    headers=self._headers,
                    expected_size=file.size,
                    tqdm_class=silent_bar(on_bytes),
                )
                actual = _hash(stream, file)
            if actual == blob.name:
                partial.replace(blob)
                return arrived
            partial.unlink()
            if not kept:
                raise CacheError(
                    f"{file.path} arrived with the hash {actual}, the Hub announced {blob.name}: "
                    "it was removed; pull again, and if that doesn't help, look for a proxy or a "
                    "mirror (HF_ENDPOINT) that changes files"
                )

    def _partial(self, file: RepoFile) -> Path:
        return self._repo / "blobs" / f"{etag_of(file)}.incomplete"

    def _count_kept(self, file: RepoFile) -> int:
        try:
            status = self._partial(file).lstat()
        except FileNotFoundError:
            return 0
        # through a link, a hard one too, a file of someone else would be written to
        is_ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        return status.st_size if is_ours and status.st_size <= file.size else 0

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _StoppedError


class _StoppedError(Exception):
    """Raised in a download to end it because another one failed; nobody is told."""


def _is_resumable(file: RepoFile) -> bool:
    # http_get writes in chunks of this size: of anything smaller there is never a part
    is_large = file.size > constants.DOWNLOAD_CHUNK_SIZE
    return is_large and not comes_by_xet(file) and _HASH.fullmatch(etag_of(file)) is not None


def _open_partial(path: Path) -> BufferedRandom:
    # not for appending: two processes on a disk without locks then write the same bytes to the
    # same places
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    os.utime(descriptor)  # a deletion in another container leaves alone what is recent
    return os.fdopen(descriptor, "r+b")


def _hash(stream: BufferedRandom, file: RepoFile) -> str:
    stream.seek(0)
    start = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size)
    return hashlib.file_digest(stream, lambda: start).hexdigest()
