"""Values of a run that live in files of its artifacts: how they are written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import threading
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from ml_experiments.serialization.encoder import Encoder, Place
from ml_experiments.serialization.files import open_atomically, sync_files
from ml_experiments.serialization.typed_json import TYPE_KEY, Unportable

INLINE_BYTES = 4096
_MIN_CHECKED_BYTES = 1 << 24
# PNG keeps these modes of Pillow as they are
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_MAX_STEM_LENGTH = 100
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # on Windows
_naming = threading.Lock()


class ResultFiles:
    """Writes values below `artifacts_dir / name`, in files named after their place in results."""

    def __init__(self, artifacts_dir: Path, name: str, redact: Callable[[str], str]) -> None:
        self._artifacts_dir = artifacts_dir
        self._name = name
        self._redact = redact
        self._written: list[Path] = []
        self._taken: set[str] = set()  # names in the folder, once something is written there

    def sync(self) -> None:
        """Let all that was written outlive a power cut.

        Raises:
            OSError: If the disk did not take all of it.
        """
        sync_files(self._written)

    def write(self, value: Any, place: Place) -> dict[str, Any] | None:
        """Write a value that belongs in a file and return its descriptor; None for any other.

        Raises:
            Unportable: If a value of such a kind can't be written without loss.
            OSError: If the disk is full or the folder can't be written.
        """
        np, torch, pd = (sys.modules.get(name) for name in ("numpy", "torch", "pandas"))
        images = sys.modules.get("PIL.Image")
        if isinstance(value, Path):
            return self._refer(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self._write_bytes(bytes(value), place)
        if np is not None and isinstance(value, np.ndarray):
            return self._write_array(np, value, place)
        if torch is not None and isinstance(value, getattr(torch, "Tensor", ())):
            return self._write_tensor(torch, value, place)
        if images is not None and isinstance(value, getattr(images, "Image", ())):
            return self._write_image(value, place)
        if pd is not None and isinstance(
            value, (getattr(pd, "DataFrame", ()), getattr(pd, "Series", ()))
        ):
            return self._write_table(value, place)
        return None

    def _save(self, place: Place, suffix: str, write: Callable[[BinaryIO], object]) -> str:
        """Write a new file and return its path relative to the run folder."""
        folder = self._artifacts_dir / self._name
        stem = _stem([self._redact(str(part)) for part in place])
        with _naming:
            if not self._written:
                folder.mkdir(parents=True, exist_ok=True)
                self._taken = {_folded(file.name) for file in folder.iterdir()}
            name, number = f"{stem}{suffix}", 1
            # what another thread has written meanwhile is known to the disk only
            while _folded(name) in self._taken or (folder / name).exists():
                number += 1
                name = f"{stem}-{number}{suffix}"
            file = folder / name
            with open_atomically(file, durable=False) as stream:
                write(stream)
            self._taken.add(_folded(name))
            self._written.append(file)
        return f"{self._artifacts_dir.name}/{self._name}/{name}"

    def _refer(self, value: Path) -> dict[str, Any] | None:
        base = self._artifacts_dir.resolve()
        try:
            file = value.resolve()
            relative = file.relative_to(base).as_posix()
            relative.encode()
        except UnicodeEncodeError:
            raise Unportable("the file's name is not UTF-8; rename the file") from None
        except (ValueError, RuntimeError):  # elsewhere, or a loop of links
            return None
        path = f"{self._artifacts_dir.name}/{relative}" if relative != "." else base.name
        if file.is_dir():
            return {TYPE_KEY: "folder", "path": path}
        if not file.is_file():
            raise Unportable("there is no such file in the artifacts; write it before returning")
        return {TYPE_KEY: "file", "path": path, "size_bytes": file.stat().st_size}

    def _write_bytes(self, value: bytes, place: Place) -> dict[str, Any] | None:
        if len(value) <= INLINE_BYTES:
            return None
        path = self._save(place, ".bin", lambda stream: stream.write(value))
        return {TYPE_KEY: "bytes", "path": path, "size_bytes": len(value)}

    def _write_array(self, np: Any, value: Any, place: Place) -> dict[str, Any]:
        if np.ma.isMaskedArray(value):
            raise Unportable("return the masked array's .data and .mask, or .filled(...)")
        if value.dtype.hasobject:
            raise Unportable(
                f"an array of {value.dtype} needs pickle; return .tolist(), or .astype(str)"
            )
        if value.dtype.isbuiltin == 2:  # registered by another library: .npy can't name it
            raise Unportable(f"numpy's file format has no {value.dtype}; return .astype('float32')")
        self._check_space(value.nbytes)  # a view may stand for more than the memory holds
        path = self._save(place, ".npy", lambda stream: _write_npy(np, stream, value))
        shape = list(value.shape)
        return {TYPE_KEY: "ndarray", "path": path, "dtype": str(value.dtype), "shape": shape}

    def _check_space(self, size_bytes: int) -> None:
        """Raise the error of a full disk for what would only fill the disk up and then fail."""
        if size_bytes < _MIN_CHECKED_BYTES:
            return
        place = next(p for p in (self._artifacts_dir, *self._artifacts_dir.parents) if p.exists())
        if size_bytes > shutil.disk_usage(place).free:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {size_bytes:,} bytes")

    def _write_tensor(self, torch: Any, value: Any, place: Place) -> dict[str, Any]:
        array = _tensor_to_array(torch, value)
        descriptor = self._write_array(sys.modules["numpy"], array, place)
        return {**descriptor, TYPE_KEY: "tensor", "dtype": str(value.dtype).removeprefix("torch.")}

    def _write_image(self, value: Any, place: Place) -> dict[str, Any]:
        try:
            value.load()
        except (OSError, SyntaxError, ValueError, EOFError) as e:
            raise Unportable(f"the image can't be read: {e}") from e
        if getattr(value, "n_frames", 1) > 1:
            raise Unportable(
                f"the image has {value.n_frames} frames; save it in output_dir with "
                "save_all=True and return the path, or return a list of single frames"
            )
        if value.mode == "PA":  # the palette has no place in a raw file; the pixels are the same
            value = value.convert("RGBA")
        if value.mode in _PNG_MODES and 0 not in value.size:
            path = self._save(place, ".png", lambda stream: value.save(stream, format="PNG"))
        else:
            raw = value.tobytes()
            path = self._save(place, ".raw", lambda stream: stream.write(raw))
        return {TYPE_KEY: "image", "path": path, "mode": value.mode, "size": list(value.size)}

    def _write_table(self, value: Any, place: Place) -> dict[str, Any]:
        from ml_experiments.serialization.tables import describe_table  # imports pandas

        description, content = describe_table(value)
        path = self._save(place, ".csv", lambda stream: stream.write(content))
        kind = "series" if value.ndim == 1 else "dataframe"
        return {TYPE_KEY: kind, "path": path, "shape": list(value.shape), **description}


class _Writer:
    """A stream that is no file to numpy, whose own writing of files hides why a disk fails."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write = stream.write


def _write_npy(np: Any, stream: BinaryIO, value: Any) -> None:
    np.lib.format.write_array(_Writer(stream), np.asarray(value), allow_pickle=False)


def _tensor_to_array(torch: Any, value: Any) -> Any:
    tensor = value.detach()
    if tensor.is_quantized:
        raise Unportable("return .dequantize() of the quantized tensor, or its .int_repr()")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise Unportable("return .to_dense() of the tensor, or its indices and values")
    if tensor.is_meta:
        raise Unportable("a tensor on the meta device has no values")
    try:
        tensor = tensor.cpu().resolve_conj().resolve_neg()
        if tensor.dtype == torch.complex32:
            tensor = tensor.to(torch.complex64)
        elif tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float64):
            # numpy has neither bfloat16 nor float8; float32 holds both exactly
            tensor = tensor.to(torch.float32)
        return tensor.numpy()
    except (RuntimeError, TypeError, ValueError) as e:
        raise Unportable(f"the tensor can't be read: {e}") from e


def _stem(place: Sequence[str | int]) -> str:
    parts = (re.sub(r"[^\w-]+", "_", unicodedata.normalize("NFC", str(part))) for part in place)
    stem = ".".join(parts) or "value"
    if _RESERVED.match(stem):
        stem = f"_{stem}"
    stem = stem[-_MAX_STEM_LENGTH:]  # the end differs most
    while len(stem.encode()) > _MAX_STEM_LENGTH:
        stem = stem[1:]
    return stem


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()  # as some file systems compare names


def encode(
    value: Any,
    artifacts_dir: Path,
    name: str,
    redact: Callable[[str], str] = str,
    *,
    durable: bool = True,
) -> tuple[Any, tuple[str, ...]]:
    """Return a value as strict JSON, and one message per part that can't be represented.

    Such a part is replaced by a descriptor with `$type` "unportable"; the rest is kept.

    Args:
        value: What an experiment returned or logged.
        artifacts_dir: The run's artifacts; files go below `artifacts_dir / name`.
        name: What messages call the value, such as `results`.
        redact: Takes secrets out of the names of files, which come from keys.
        durable: Whether the files have to outlive a power cut (fsync).

    Raises:
        OSError: If a file can't be written, as on a full disk.
    """
    files = ResultFiles(artifacts_dir, name, redact)
    encoder = Encoder(name, files.write)
    encoded = encoder.encode(value, (), 0)
    if durable:
        files.sync()
    return encoded, tuple(encoder.problems)
