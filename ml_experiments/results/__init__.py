"""The portable result contract: what `run()` returns as strict JSON and files, and back.

Plain data becomes JSON; what JSON lacks becomes an object with a `$type` (typed_json.py);
arrays, tensors, images, tables, large bytes and paths of artifacts become a descriptor of a
file (writing.py). Tuples and deques come back as lists; named tuples, dataclasses and
pydantic models as dicts; an enum member as its value. Nothing is pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_experiments.results.encoder import Encoder, to_json
from ml_experiments.results.loading import load_file
from ml_experiments.results.typed_json import from_json
from ml_experiments.results.writing import ResultFiles

__all__ = ["encode", "from_json", "load_file", "to_json"]


def encode(
    value: Any, artifacts_dir: Path, name: str, redact: Callable[[str], str] = str
) -> tuple[Any, tuple[str, ...]]:
    """Return a value as strict JSON, and one message per part that can't be represented.

    Such a part is replaced by a descriptor with `$type` "unportable"; the rest is kept.

    Args:
        value: What an experiment returned or logged.
        artifacts_dir: The run's artifacts; files go below `artifacts_dir / name`.
        name: What messages call the value, such as `results`.
        redact: Takes secrets out of the names of files, which come from keys.

    Raises:
        OSError: If a file can't be written, as on a full disk.
    """
    encoder = Encoder(name, ResultFiles(artifacts_dir, name, redact).write)
    return encoder.encode(value, (), 0), tuple(encoder.problems)
