"""Downloading into a cache before it is needed, so that no GPU waits for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import XetDownloadError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import filter_repo_objects
from rich.filesize import decimal

from ml_experiments.cache.hub_errors import HubProblem, hub_problem
from ml_experiments.cache.layout import (
    SHARED_BLOBS_FOLDER,
    find_layout,
    is_real_folder,
    repo_folder,
)
from ml_experiments.cache.patterns import check_revision
from ml_experiments.cache.pull.progress import ProgressMeter, PullProgress
from ml_experiments.cache.scan.repositories import read_ref
from ml_experiments.errors import CacheError
from ml_experiments.serialization.files import write_atomically

_TIMEOUT_S = 10.0
_NAMES_SHOWN = 5
_TOKEN_PLACES = "the secret huggingface-secret or HF_TOKEN"


@dataclass(frozen=True)
class PullOutcome:
    """What a pull did; both counts of downloads are 0 if all of it was there.

    Attributes:
        downloaded_files: The number of files that were not there.
    """

    name: str
    kind: str
    revision: str
    path: str
    files: int
    bytes: int
    downloaded_files: int
    downloaded_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def pull(
    name: str,
    *,
    cache_dir: str | Path,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kind: str = "model",
    on_progress: Callable[[PullProgress], None] | None = None,
) -> PullOutcome:
    """Download a repository into a cache; files that are there already are not downloaded again.

    Args:
        name: As on the Hub.
        cache_dir: The cache folder.
        revision: A branch, tag or commit hash; main by default.
        include: Globs of files to take; all by default.
        exclude: Globs of files to leave out.
        kind: model, dataset or space.
        on_progress: Called as bytes arrive.

    Raises:
        CacheError: If the name or revision is not valid, missing or gated, nothing matches the
            globs, the disk has too little room, or the download can't be completed.
    """
    if revision is not None:
        check_revision(revision)  # it becomes a file's name
    hub = _writable_hub(cache_dir)
    repo = hub / repo_folder(name, kind)
    try:
        commit, files = _list_files(name, kind, revision, include, exclude)
        _refuse_obstacles(repo, commit, files)
        missing = [file for file in files if not _is_there(repo, commit, file)]
        if missing:
            # names, sizes and the README of a gated repository are public, its weights are not:
            # checked now, because a download that is refused leaves half a repository behind
            largest = max(missing, key=lambda file: file.size).path
            url = hf_hub_url(name, largest, repo_type=kind, revision=commit)
            get_hf_file_metadata(url, timeout=_TIMEOUT_S)
        total = sum(file.size for file in missing)
        _check_space(name, total, hub)
        meter = ProgressMeter(total, on_progress)
        path = snapshot_download(
            name,
            repo_type=kind,
            revision=commit,  # what was listed, even if the branch has moved on meanwhile
            cache_dir=hub,
            allow_patterns=list(include) or None,
            ignore_patterns=list(exclude) or None,
            tqdm_class=meter.silent_bar(),
        )
        # when the Hub refuses or is gone, huggingface_hub may take what is there for all of it
        if not all(Path(path, file.path).exists() for file in files):
            raise CacheError(_stopped(name, "the Hub no longer serves it"))
        meter.reach(total)  # also what another process has downloaded meanwhile
        _point_to(repo, revision or constants.DEFAULT_REVISION, commit)
    except (httpx2.HTTPError, XetDownloadError, OSError, ValueError) as e:
        raise CacheError(_explain(e, name, kind, revision)) from e
    return PullOutcome(
        name=name,
        kind=kind,
        revision=commit,
        path=path,
        files=len(files),
        bytes=sum(file.size for file in files),
        downloaded_files=len(missing),
        downloaded_bytes=total,
    )


def _writable_hub(cache_dir: str | Path) -> Path:
    layout = find_layout(cache_dir)
    if layout.hub is None:
        raise CacheError(f"{layout.root} is a cache of torch; repositories can't be put there")
    if layout.hub.exists() and not is_real_folder(layout.hub, layout.root):
        raise CacheError(
            f"{layout.hub} is reached by a symbolic link, which is not followed; "
            f"give {layout.hub.resolve()} as the cache folder"
        )
    return layout.hub


def _list_files(
    name: str,
    kind: str,
    revision: str | None,
    include: Sequence[str],
    exclude: Sequence[str],
) -> tuple[str, list[RepoFile]]:
    api = HfApi()
    info = api.repo_info(name, repo_type=kind, revision=revision, timeout=_TIMEOUT_S)
    commit = str(info.sha)
    tree = api.list_repo_tree(name, recursive=True, revision=commit, repo_type=kind)
    files = [entry for entry in tree if isinstance(entry, RepoFile)]
    chosen = list(
        filter_repo_objects(
            files,
            allow_patterns=list(include) or None,
            ignore_patterns=list(exclude) or None,
            key=lambda file: file.path,
        )
    )
    if not chosen:
        names = ", ".join(file.path for file in files[:_NAMES_SHOWN])
        more = f" and {len(files) - _NAMES_SHOWN} more" if len(files) > _NAMES_SHOWN else ""
        raise CacheError(
            f"no file of {name} matches include={list(include)} exclude={list(exclude)}; "
            f"it has {names + more if files else 'no files'}"
        )
    return commit, chosen


def _places(repo: Path, commit: str, file: RepoFile) -> list[Path]:
    """Return where a file may be: its blob, its link, and the store of shared blobs."""
    etag = file.blob_id if file.lfs is None else file.lfs.sha256
    places = [repo / "blobs" / etag, repo / "snapshots" / commit / file.path]
    if file.xet_hash is not None:
        places.append(repo.parent / SHARED_BLOBS_FOLDER / file.xet_hash[:2] / file.xet_hash)
    return places


def _is_there(repo: Path, commit: str, file: RepoFile) -> bool:
    return any(place.is_file() for place in _places(repo, commit, file))


def _refuse_obstacles(repo: Path, commit: str, files: list[RepoFile]) -> None:
    """Make sure that nothing but files is where files belong; huggingface_hub doesn't look.

    Raises:
        CacheError: If a folder or a FIFO is there.
    """
    for file in files:
        for place in _places(repo, commit, file):
            if place.exists() and not place.is_file():
                raise CacheError(f"{place} is in the way: it is no file; remove it, and pull again")


def _check_space(name: str, needed: int, hub: Path) -> None:
    folder = hub
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CacheError(
            f"{name} needs {decimal(needed)} more and {hub} has {decimal(free)} free; make room "
            "with `ml-experiments cache clear`, or take fewer files with --include or --exclude"
        )


def _point_to(repo: Path, revision: str, commit: str) -> None:
    """Let a branch or tag lead to a commit, as huggingface_hub does."""
    ref = repo / "refs" / revision
    if revision == commit or read_ref(ref) == (commit, True):
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(ref, commit.encode())


def _explain(error: Exception, name: str, kind: str, revision: str | None) -> str:
    """Return what went wrong and what to do; an HTTP error's message has no token in it."""
    page = f"https://huggingface.co/{'' if kind == 'model' else kind + 's/'}{name}"
    match hub_problem(error):
        case HubProblem.NOT_A_NAME:
            return f"{name!r} is not a name on the Hub, such as org/name: {error}"
        case HubProblem.NO_REVISION:
            return (
                f"{name} has no revision {revision!r}; see its branches and tags at "
                f"{page}/tree/main"
            )
        case HubProblem.GATED:
            return (
                f"{name} is gated: accept its terms at {page}, with the account whose token is in "
                f"{_TOKEN_PLACES}; then pull again"
            )
        case HubProblem.TOKEN_REJECTED:
            return (
                "the Hub rejected the token; make a new one at "
                f"https://huggingface.co/settings/tokens and put it into {_TOKEN_PLACES}"
            )
        case HubProblem.NO_REPOSITORY:
            return (
                f"there is no {kind} {name!r} on the Hub, or it is private; check the spelling "
                f"and the kind, or give a token with access in {_TOKEN_PLACES}"
            )
        case HubProblem.NOT_ALLOWED:
            return f"the token may not read {name}; give it the right to at {page}"
        case HubProblem.OFFLINE:
            return f"{name} can't be downloaded while HF_HUB_OFFLINE is set; unset it"
        case HubProblem.UNREACHABLE:
            return (
                f"the Hub can't be reached: {error}; check the network, and HF_ENDPOINT if it is "
                f"set, and pull again: the files of {name} that are complete are kept"
            )
    return _stopped(name, f"{type(error).__name__}: {error}")


def _stopped(name: str, why: str) -> str:
    return (
        f"the download of {name} stopped: {why}\n"
        "files that are complete are kept: the same command fetches the others"
    )
