"""Layers of images: folders with a Python environment and files, cached for all servers."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from modal_emulator.storage.delete_tree import delete_tree
from modal_emulator.storage.ids import new_id
from modal_emulator.storage.json_file import read_json, write_json

_ABOUT = "layer.json"
_FIELDS = {"python_version", "base_python", "client", "warnings"}
_ABANDONED_S = 24 * 3600


@dataclass(frozen=True)
class Layer:
    """An image as a folder: a Python environment, and files by their paths in containers.

    `client` is a folder with the modal package and what it needs, for this Python. `warnings` say
    what of the image is not there.
    """

    folder: Path
    python_version: str
    base_python: str
    client: str
    warnings: tuple[str, ...] = ()

    @property
    def env(self) -> Path:
        """The Python environment."""
        return self.folder / "env"

    @property
    def files(self) -> Path:
        """The files, each at its path in containers below this folder."""
        return self.folder / "files"

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.env / "bin" / "python"

    @property
    def visible(self) -> list[Path]:
        """The folders of this machine that a container needs."""
        base = Path(self.base_python)
        prefixes = {each.parent.parent for each in (base, base.resolve())}
        return [self.env, Path(self.client), *sorted(prefixes)]


def cache_folder() -> Path:
    """Return the folder in which layers are kept, the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "modal-emulator"


class LayerStore:
    """The layers on this machine, by the ids of their images, which depend on their content."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images = folder / "images"
        self._images.mkdir(parents=True, exist_ok=True)
        self._delete_abandoned()

    def get(self, image_id: str) -> Layer | None:
        """Return the layer of an image, if it was built, by this version, and is still usable."""
        about = read_json(self._images / image_id / _ABOUT, None)
        if about is None or about.keys() != _FIELDS or not Path(about["base_python"]).exists():
            return None
        about["warnings"] = tuple(about["warnings"])
        return Layer(folder=self._images / image_id, **about)

    def begin(self, base: Layer | None) -> Path:
        """Return a new folder with the content of a layer, to be changed and then `finish`ed.

        The files of the environment are hard links: installers replace files, and don't write into
        them. Other files are copies.
        """
        folder = self._images / new_id("building")
        folder.mkdir(parents=True)
        if base is not None:
            link = os.link
            shutil.copytree(base.env, folder / "env", symlinks=True, copy_function=link)
            shutil.copytree(base.files, folder / "files", symlinks=True)
        (folder / "files").mkdir(exist_ok=True)
        return folder

    def finish(self, image_id: str, layer: Layer, *, replace: bool = False) -> Layer:
        """Keep a layer as that of an image; a usable one stays unless it is to be replaced."""
        about = {
            "python_version": layer.python_version,
            "base_python": layer.base_python,
            "client": layer.client,
            "warnings": list(layer.warnings),
        }
        write_json(layer.folder / _ABOUT, about)
        target = self._images / image_id
        if target.exists() and (replace or self.get(image_id) is None):
            outdated = target.rename(self._images / new_id("outdated"))
            delete_tree(outdated)
        with contextlib.suppress(OSError):  # another server was faster
            layer.folder.rename(target)
        finished = self.get(image_id)
        assert finished is not None
        return finished

    def _delete_abandoned(self) -> None:
        """Delete what servers that were killed have begun, or not deleted, a day ago."""
        for folder in [*self._images.glob("building-*"), *self._images.glob("outdated-*")]:
            with contextlib.suppress(OSError):  # another server deletes it, too
                if time.time() - folder.stat().st_mtime > _ABANDONED_S:
                    delete_tree(folder)

    def drop(self, folder: Path) -> None:
        """Delete a folder that was begun and will not be finished."""
        if folder.exists():
            delete_tree(folder)
