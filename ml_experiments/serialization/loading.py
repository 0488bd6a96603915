"""Values of a run that live in files of its artifacts: how they are read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ml_experiments.errors import RunFolderError
from ml_experiments.serialization.typed_json import TYPE_KEY

_MAX_ARRAY_HEADER = 10_000_000  # a structured array of many fields


def load_file(descriptor: Mapping[str, Any], run_dir: Path | None) -> Any:
    """Return the value that a descriptor of a run's results stands for.

    An array or tensor is loaded as a numpy array (bfloat16 and float8 as float32, which holds
    them exactly), an image as a PIL image, a table as a pandas DataFrame or Series, bytes as
    bytes; a file or folder as its path on this machine.

    Raises:
        RunFolderError: If the run folder isn't here, the file is missing or damaged, leaves
            the run folder, or needs a package that isn't installed.
    """
    kind = descriptor.get(TYPE_KEY) if isinstance(descriptor, Mapping) else None
    kind = kind if isinstance(kind, str) else ""
    if kind in _VALUES:
        return _guarded(_VALUES[kind], descriptor, Path(str(descriptor.get("value"))))
    if kind not in _FILES:
        known = ", ".join([*_FILES, *_VALUES])
        raise RunFolderError(
            f"not the descriptor of a file: {str(descriptor)[:200]}; its $type is one of {known}"
        )
    return _guarded(_FILES[kind], descriptor, locate(descriptor, run_dir))


def locate(descriptor: Mapping[str, Any], run_dir: Path | None) -> Path:
    """Return where the file of a descriptor is on this machine.

    Raises:
        RunFolderError: If it isn't there, or isn't inside the run folder.
    """
    path = descriptor.get("path")
    if not isinstance(path, str) or not path:
        raise RunFolderError(f"the descriptor has no path: {str(descriptor)[:200]}")
    if run_dir is None:
        raise RunFolderError(f"{path} can't be read: the run folder is not on this machine")
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or ":" in path or "\0" in path:
        raise RunFolderError(f"{path!r} is not a path inside a run folder")
    file = run_dir / parts
    try:
        is_there = file.exists()
        is_inside = file.resolve().is_relative_to(run_dir.resolve())
    except (OSError, RuntimeError) as e:  # a loop of links, a name that is too long
        raise RunFolderError(f"{file} can't be reached: {e}") from e
    if not is_there:
        raise RunFolderError(f"{file} is missing; was the run folder copied whole?")
    if not is_inside:
        raise RunFolderError(f"{path!r} is a link that leaves the run folder")
    return file


def _guarded(
    load: Callable[[Mapping[str, Any], Path], Any], descriptor: Mapping[str, Any], file: Path
) -> Any:
    try:
        return load(descriptor, file)
    except ImportError as e:
        raise RunFolderError(
            f"{file} needs {e.name} to be read; install it with: pip install {e.name}"
        ) from e
    except (OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError) as e:
        raise RunFolderError(f"{file} is damaged: {type(e).__name__}: {e}") from e


def _load_array(_descriptor: Mapping[str, Any], file: Path) -> Any:
    import numpy as np

    with file.open("rb") as stream:
        return np.lib.format.read_array(
            stream, allow_pickle=False, max_header_size=_MAX_ARRAY_HEADER
        )


def _load_image(descriptor: Mapping[str, Any], file: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as e:
        raise ImportError(str(e), name="pillow") from e

    if file.suffix == ".raw":
        return Image.frombytes(descriptor["mode"], tuple(descriptor["size"]), file.read_bytes())
    with Image.open(file) as image:
        image.load()
        return (
            image.copy() if image.mode == descriptor["mode"] else image.convert(descriptor["mode"])
        )


def _load_table(descriptor: Mapping[str, Any], file: Path) -> Any:
    from ml_experiments.serialization.tables import rebuild_table  # imports pandas

    return rebuild_table(descriptor, file.read_bytes())


def _load_bytes(descriptor: Mapping[str, Any], file: Path) -> bytes:
    content = file.read_bytes()
    if len(content) != descriptor["size_bytes"]:
        raise ValueError(f"{len(content)} bytes instead of {descriptor['size_bytes']}")
    return content


def _load_numpy_time(descriptor: Mapping[str, Any], _file: Path) -> Any:
    import numpy as np

    unit = tuple(descriptor["unit"])
    if descriptor[TYPE_KEY] == "datetime64":
        return np.datetime64(descriptor["value"], unit)
    return np.timedelta64(int(descriptor["value"]), unit)


def _load_missing(descriptor: Mapping[str, Any], _file: Path) -> Any:
    import pandas as pd

    return pd.NaT if descriptor["value"] == "NaT" else pd.NA


_FILES: dict[str, Callable[[Mapping[str, Any], Path], Any]] = {
    "ndarray": _load_array,
    "tensor": _load_array,
    "image": _load_image,
    "dataframe": _load_table,
    "series": _load_table,
    "bytes": _load_bytes,
    "file": lambda _descriptor, file: file,
    "folder": lambda _descriptor, file: file,
}
FILE_TYPES = tuple(_FILES)
# values beside those in files: values of numpy and pandas that Python has no type for
_VALUES: dict[str, Callable[[Mapping[str, Any], Path], Any]] = {
    "datetime64": _load_numpy_time,
    "timedelta64": _load_numpy_time,
    "missing": _load_missing,
}
