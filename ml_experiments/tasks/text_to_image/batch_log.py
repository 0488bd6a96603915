"""What a run that is resumed must know of the batches that its earlier attempts have drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_experiments.tasks.text_to_image.batches import Batch, BatchSize

_FILE = "batches.jsonl"


class BatchLog:
    """Batches whose metrics are logged: each is logged once, however often a run is resumed.

    Attributes:
        earlier_seconds: What earlier attempts took for their batches.
    """

    def __init__(self, file: Path, key: str, size: BatchSize) -> None:
        """Continue with a file that is there already, for batches with the same key."""
        self._file, self._key, self._size = file, key, size
        self._seconds: dict[int, float] = {}
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                self._read(line)
        self.earlier_seconds = sum(self._seconds.values())

    @classmethod
    def open(cls, folder: Path, what: Any, size: BatchSize) -> BatchLog:
        """Open the log in a run's checkpoint folder.

        Args:
            folder: The folder.
            what: JSON that says what is drawn; batches of anything else don't count.
            size: Is set to what earlier attempts came to.
        """
        key = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
        return cls(folder / _FILE, key, size)

    @property
    def seconds(self) -> Sequence[float]:
        """How long each batch took."""
        return list(self._seconds.values())

    def has(self, done: int) -> bool:
        """Return whether the batch that ends at this count is logged."""
        return done in self._seconds

    def add(self, batch: Batch) -> None:
        """Note that a batch is logged; call it right after that."""
        self._seconds[batch.done] = batch.seconds
        entry = {
            "of": self._key,
            "done": batch.done,
            "seconds": batch.seconds,
            "pixels": self._size.pixels,
            "too_large": self._size.too_large,
        }
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _read(self, line: str) -> None:
        try:
            entry = json.loads(line)
            if entry["of"] == self._key:
                self._seconds[entry["done"]] = entry["seconds"]
                self._size.pixels = entry["pixels"]
                self._size.too_large[:] = entry["too_large"]
        except (ValueError, KeyError, TypeError):
            pass  # cut short by a kill
