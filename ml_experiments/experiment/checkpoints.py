"""Checkpoints that a kill, a full disk or a power cut can't damage: written aside, then renamed.

checkpoints/
  000007/            a whole checkpoint; higher numbers are newer
    checkpoint.json  step, format, and the size and SHA-256 of each file
    state.pt         or state.safetensors, state.json, or what a function or a folder had
  .000008.tmp/       one that is being written, or whose writer was killed
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_experiments.errors import CheckpointError
from ml_experiments.experiment.random_state import random_state, restore_random_state
from ml_experiments.serialization.files import parse_strict_json, sync_files, write_json_atomically

logger = logging.getLogger(__name__)

CheckpointFormat = Literal["torch", "safetensors", "json", "files"]
_RECORD = "checkpoint.json"
_STATE_FILES = {"torch": "state.pt", "safetensors": "state.safetensors", "json": "state.json"}
_DIGITS = 6


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint of a run.

    Attributes:
        path: Its folder.
        step: The step that it was saved at; None if none was given.
        format: How its state is stored.
    """

    path: Path
    step: int | None
    format: CheckpointFormat
    _random_state: dict[str, Any]

    def load(self, device: str = "cpu") -> Any:
        """Return the state, and set the random number generators to where they were.

        Call it once everything is built, for building a model draws random numbers. The state of
        a checkpoint that a function wrote, or of a folder, is the path of its folder. Nothing is
        unpickled but tensors and plain values: `torch.load` is called with `weights_only=True`.

        Args:
            device: Where tensors are loaded to.
        """
        state = self._load_state(device)
        restore_random_state(self._random_state)
        return state

    def to_dict(self) -> dict[str, Any]:
        """Return the checkpoint as JSON, for another process."""
        return {**vars(self), "path": str(self.path)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of `to_dict`."""
        return cls(**{**data, "path": Path(data["path"])})

    def _load_state(self, device: str) -> Any:
        if self.format == "files":
            return self.path
        file = self.path / _STATE_FILES[self.format]
        if self.format == "json":
            return json.loads(file.read_text(encoding="utf-8"))
        if self.format == "safetensors":
            from safetensors.torch import load_file

            return load_file(file, device=device)
        import torch

        return torch.load(file, map_location=device, weights_only=True)


def save_checkpoint(
    folder: Path,
    state: Any,
    *,
    step: int | None,
    keep: int,
    format: Literal["torch", "safetensors", "json"] | None,  # noqa: A002 - as users say it
) -> Path:
    """Save a checkpoint, then remove all but the newest; return the new one's folder.

    See `RunContext.save_checkpoint`.
    """
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise CheckpointError(f"keep is {keep!r}; it must be a whole number, at least 1")
    present = list(_numbered(folder))
    number = present[-1][0] + 1 if present else 1
    target = folder / f"{number:0{_DIGITS}}"
    temporary = folder / f".{target.name}.tmp"
    for left_over in folder.glob(".*.tmp"):
        if left_over.is_dir():  # its writer was killed
            shutil.rmtree(left_over, ignore_errors=True)
    try:
        temporary.mkdir()
        written = _write_state(temporary, state, format)
        files = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
        for parent in {file.parent for file in files}:
            sync_files([file for file in files if file.parent == parent])
        record = {
            "step": step,
            "format": written,
            "files": {
                file.relative_to(temporary).as_posix(): {
                    "bytes": file.stat().st_size,
                    "sha256": _sha256(file),
                }
                for file in files
            },
            "random_state": random_state(),
        }
        write_json_atomically(temporary / _RECORD, record)
        temporary.rename(target)
        sync_files([target])
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for _, path in present[: max(0, len(present) + 1 - keep)]:
        shutil.rmtree(path, ignore_errors=True)
    return target


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is whole; what is damaged is removed, with a warning."""
    for _, path in reversed(list(_numbered(folder))):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            logger.warning("checkpoint %s is damaged, and was removed: %s", path, e)
            # else it would count among those that are kept, in the place of a whole one
            shutil.rmtree(path, ignore_errors=True)
    return None


def _numbered(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the checkpoints of a folder, the oldest first."""
    with contextlib.suppress(FileNotFoundError):
        names = [n for n in os.listdir(folder) if n.isdecimal() and len(n) >= _DIGITS]  # noqa: PTH208 - names only
        yield from ((int(name), folder / name) for name in sorted(names, key=int))


def _read(path: Path) -> Checkpoint:
    """Return a checkpoint whose files are what was written.

    Raises:
        ValueError: If one is not; OSError, KeyError or TypeError for a damaged record.
    """
    record = parse_strict_json((path / _RECORD).read_text(encoding="utf-8"))
    for name, expected in record["files"].items():
        file = path / name
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise ValueError(f"{name} is not what was written")
    if record["format"] not in (*_STATE_FILES, "files"):
        raise ValueError(f"unknown format {record['format']!r}")
    return Checkpoint(path, record["step"], record["format"], record["random_state"])


def _write_state(folder: Path, state: Any, given: str | None) -> CheckpointFormat:
    if isinstance(state, str | Path):
        _copy(Path(state), folder)
        return "files"
    if hasattr(state, "state_dict"):  # a module is callable, too
        raise CheckpointError(
            f"a {type(state).__name__} is an object, which would have to be unpickled; save its "
            "state_dict(), as in {'model': model.state_dict()}"
        )
    if callable(state):
        state(folder)
        if not any(folder.iterdir()):
            raise CheckpointError(f"{state!r:.100} wrote nothing into the folder that it was given")
        return "files"
    kind = given or ("torch" if _has_tensor(state) else "json")
    if kind not in _STATE_FILES:
        known = ", ".join(_STATE_FILES)
        raise CheckpointError(f"format is {given!r}; write one of {known}, or leave it out")
    file = folder / _STATE_FILES[kind]
    _WRITERS[kind](state, file)
    return kind  # type: ignore[return-value]


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copy2(source, folder)
    else:
        raise CheckpointError(f"there is no file or folder {source} to save")


def _write_json(state: Any, file: Path) -> None:
    try:
        encoded = json.dumps(state)
    except (TypeError, ValueError, RecursionError) as e:
        raise CheckpointError(
            f"the state can't be saved: {e}; use tensors and plain values, or give a function "
            "that writes it into the folder that it gets"
        ) from e
    if repr(json.loads(encoded)) != repr(state):
        raise CheckpointError(
            "the state would not be loaded as it is: tuples, keys that aren't strings and "
            "subclasses of dict are not JSON; use lists, strings and dicts, or format='torch'"
        )
    file.write_text(encoded, encoding="utf-8")


def _write_torch(state: Any, file: Path) -> None:
    import torch

    torch.save(state, file)
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    if refused:  # of the pickle in the file; loading it could execute anything
        raise CheckpointError(
            f"the state holds {', '.join(sorted(set(refused)))}, which can't be loaded safely; "
            "save state_dict()s, tensors and plain values, not objects"
        )


def _write_safetensors(state: Any, file: Path) -> None:
    from safetensors.torch import save_file

    if not isinstance(state, Mapping) or not all(_is_tensor(value) for value in state.values()):
        raise CheckpointError("format='safetensors' takes a dict of tensors")
    try:
        save_file(dict(state), file)
    except (RuntimeError, ValueError) as e:  # tensors that share memory, or are not contiguous
        raise CheckpointError(f"safetensors can't save the state: {e}") from e


_WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "torch": _write_torch,
    "safetensors": _write_safetensors,
    "json": _write_json,
}


def _has_tensor(state: Any) -> bool:
    if isinstance(state, Mapping):
        return any(_has_tensor(value) for value in state.values())
    if isinstance(state, list | tuple):
        return any(_has_tensor(value) for value in state)
    return _is_tensor(state)


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
