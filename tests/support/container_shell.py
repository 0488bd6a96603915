"""Containers that run whatever function a test gives them."""

import io
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import modal
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.types import FileEntryType

# containers don't have this module
register_pickle_by_value(sys.modules[__name__])

_numbers = itertools.count()


class Container:
    """Runs the functions that it is given; one process for each value of `name`."""

    name: str = modal.parameter()

    @modal.method()
    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


Run = Callable[..., Any]


@contextmanager
def containers(volumes: dict[str, modal.Volume]) -> Iterator[Callable[[str], Run]]:
    """Yield what gives a container by name; `DATA` in its environment is its first volume."""
    app = modal.App(f"containers-{next(_numbers)}")
    path = modal.Secret.from_dict({"DATA": next(iter(volumes), None)})
    decorate = app.cls(serialized=True, volumes=volumes, secrets=[path], scaledown_window=600)
    cls = decorate(Container)
    with app.run():
        yield lambda name: cls(name=name).run.remote


def new_volume(version: int = 2) -> modal.Volume:
    """Return an empty volume."""
    name = f"shared-{next(_numbers)}"
    return modal.Volume.from_name(name, create_if_missing=True, version=version).hydrate()


def put(volume: modal.Volume, files: dict[str, bytes]) -> None:
    """Upload files over what is there."""
    with volume.batch_upload(force=True) as batch:
        for path, content in files.items():
            batch.put_file(io.BytesIO(content), path)


def contents(volume: modal.Volume) -> dict[str, bytes]:
    """Return the committed files of a volume, without links."""
    entries = volume.listdir("/", recursive=True)
    files = [entry.path for entry in entries if entry.type == FileEntryType.FILE]
    return {path: b"".join(volume.read_file(path)) for path in files}


def write(path: str, text: str) -> None:
    """In a container: write a file of the first volume."""
    target = Path(os.environ["DATA"], path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def delete(path: str) -> None:
    """In a container: delete a file or folder of the first volume."""
    import shutil

    target = Path(os.environ["DATA"], path)
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()


def tree() -> dict[str, str]:
    """In a container: return the files of the first volume, as the container sees them."""
    top = Path(os.environ["DATA"])
    return {
        str(each.relative_to(top)): each.read_text() for each in top.rglob("*") if each.is_file()
    }


def commit(volume: modal.Volume) -> None:
    """In a container: commit a volume."""
    volume.commit()


def reload(volume: modal.Volume) -> None:
    """In a container: reload a volume."""
    volume.reload()
