"""Where each kind of file stands in a cache folder.

    /cache                        the root, as on the volume; ~/.cache on this machine
      huggingface/                HF_HOME
        hub/                      models--org--name/{blobs,refs,snapshots}, .locks, blobs
        transformers/             TRANSFORMERS_CACHE of older versions: models--…
        datasets/                 HF_DATASETS_CACHE: prepared tables
        .ml-experiments/uses/     ours: when a run last used a revision
        .ml-experiments/leases/   ours: what runs in other containers use now
      torch/hub/checkpoints/      TORCH_HOME

The root may also be an HF_HOME, a hub folder or a TORCH_HOME itself.
"""

from __future__ import annotations

import functools
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ml_experiments.errors import CacheError

Kind = Literal["model", "dataset", "space", "kernel", "torch"]
KINDS: tuple[Kind, ...] = ("model", "dataset", "space", "kernel", "torch")

LOCKS_FOLDER = ".locks"
SHARED_BLOBS_FOLDER = "blobs"
OWN_FOLDER = ".ml-experiments"
_KINDS_BY_PREFIX: dict[str, Kind] = {
    "models": "model",
    "datasets": "dataset",
    "spaces": "space",
    "kernels": "kernel",
}


@dataclass(frozen=True)
class CacheLayout:
    """The folders of one cache; None where the root leaves no place for one."""

    root: Path
    hub: Path | None
    transformers: Path | None
    datasets: Path | None
    checkpoints: Path | None
    uses: Path | None
    leases: Path | None

    @property
    def hub_folders(self) -> tuple[Path, ...]:
        """The folders in which repositories stand as `models--org--name`."""
        return tuple(folder for folder in (self.hub, self.transformers) if folder is not None)

    @property
    def lockable(self) -> Path:
        """The folder whose lock is held while something is deleted, whichever root was given."""
        return next((f for f in (self.hub, self.checkpoints) if f and os.path.isdir(f)), self.root)


def find_layout(cache_dir: str | os.PathLike[str]) -> CacheLayout:
    """Return which subfolder of a cache folder is for what.

    This machine's own folders are known; for any other, what it holds decides.

    Raises:
        CacheError: If the path is empty or leads to something that is no readable folder.
    """
    if not os.fspath(cache_dir).strip():
        raise CacheError("the cache folder is an empty string; give a path such as ~/.cache")
    try:
        root = Path(cache_dir).expanduser().resolve()
        names = set(os.listdir(root)) if os.path.lexists(root) else set()
    except NotADirectoryError as e:
        raise CacheError(f"the cache folder {root} is not a folder") from e
    except (OSError, RuntimeError, ValueError) as e:
        raise CacheError(f"the cache folder {os.fspath(cache_dir)!r} is not usable: {e}") from e
    own = _of_this_machine(root)
    if own is not None:
        return own
    if "huggingface" in names and os.path.isdir(root / "huggingface"):
        return _of_hf_home(root, root / "huggingface", root / "torch")
    if "hub" in names and os.path.isdir(root / "hub" / "checkpoints"):
        return CacheLayout(root, None, None, None, root / "hub" / "checkpoints", None, None)
    if names & {"hub", "transformers", "stored_tokens", "token"}:
        return _of_hf_home(root, root, None)
    if any(parse_repo_folder(name) for name in names):
        return _of_hub_folder(root)
    return _of_hf_home(root, root / "huggingface", root / "torch")


def parse_repo_folder(folder: str) -> tuple[Kind, str] | None:
    """Return kind and name of a repository from its folder, such as `models--org--name`."""
    prefix, dashes, name = folder.partition("--")
    kind = _KINDS_BY_PREFIX.get(prefix)
    return (kind, name.replace("--", "/")) if kind is not None and dashes and name else None


def repo_folder(name: str, kind: str = "model") -> str:
    """Return the name of the folder that holds a repository: `models--org--name`."""
    return f"{kind}s--{name.replace('/', '--')}"


def this_machine() -> Path:
    """Return this machine's own cache folder, as huggingface_hub has it."""
    home, hub = _folders_of_huggingface()
    if hub != home / "hub":
        return hub
    return home.parent if home.name == "huggingface" else home


def is_real_folder(path: Path, root: Path) -> bool:
    """Return whether a folder below `root` is reached without a symbolic link."""
    while path != root:
        try:
            if not stat.S_ISDIR(path.lstat().st_mode):
                return False
        except OSError:
            return False
        path = path.parent
    return root.is_dir()


def is_without_links(folder: Path, root: Path) -> bool:
    """Return whether no symbolic link leads from a folder below `root` out of it."""
    while folder != root:
        if folder.is_symlink():
            return False
        folder = folder.parent
    return True


def _folders_of_huggingface() -> tuple[Path, Path]:
    """Return HF_HOME and HF_HUB_CACHE."""
    from huggingface_hub import constants  # reads the variables when it is imported

    return Path(constants.HF_HOME), Path(constants.HF_HUB_CACHE)


def _of_this_machine(root: Path) -> CacheLayout | None:
    """Return the layout of a folder of this machine's own, even if nothing is in it yet."""
    home, hub = _folders_of_huggingface()
    real_home, real_hub, real_parent = _resolve(home, hub, home.parent)
    if hub != home / "hub" and root == real_hub:
        return _of_hub_folder(root)
    if root == real_home:
        return _of_hf_home(root, root, None)
    if home.name == "huggingface" and root == real_parent:
        return _of_hf_home(root, root / "huggingface", root / "torch")
    return None


@functools.cache
def _resolve(*folders: Path) -> tuple[Path, ...]:
    return tuple(folder.resolve() for folder in folders)  # once, for every run needs it


def _of_hub_folder(root: Path) -> CacheLayout:
    ours = root / OWN_FOLDER
    return CacheLayout(root, root, None, None, None, ours / "uses", ours / "leases")


def _of_hf_home(root: Path, hf_home: Path, torch_home: Path | None) -> CacheLayout:
    return CacheLayout(
        root=root,
        hub=hf_home / "hub",
        transformers=hf_home / "transformers",
        datasets=hf_home / "datasets",
        checkpoints=None if torch_home is None else torch_home / "hub" / "checkpoints",
        uses=hf_home / OWN_FOLDER / "uses",
        leases=hf_home / OWN_FOLDER / "leases",
    )
