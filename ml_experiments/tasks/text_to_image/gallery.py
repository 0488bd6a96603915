"""The pictures of a run: their files, their records for the results, and the contact sheet."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ml_experiments.tasks.text_to_image.batches import Batch
from ml_experiments.tasks.text_to_image.contact_sheet import ContactSheet
from ml_experiments.tasks.text_to_image.picture_files import picture_name, write_picture

logger = logging.getLogger(__name__)

CONTACT_SHEET_FILE = "contact-sheet.png"


class Gallery:
    """Writes each batch in a thread of its own, while the next one is drawn.

    Attributes:
        records: One for each picture that is on disk: path, prompt, seed and index.
    """

    def __init__(
        self, folder: Path, count: int, sheet: ContactSheet, texts: Mapping[str, str]
    ) -> None:
        """Write into `folder`.

        Args:
            count: How many pictures there will be.
            sheet: Receives every picture.
            texts: Written into every file, besides prompt, seed and index.
        """
        self.records: list[dict[str, Any]] = []
        self._folder, self._count, self._sheet, self._texts = folder, count, sheet, texts
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="picture-writer")
        self._pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.shutdown(wait=True)

    def add(self, batch: Batch) -> None:
        """Start to write a batch, once the one before is written.

        Raises:
            OSError: If a picture of the batch before could not be written.
        """
        self.wait()
        self._pending = self._writer.submit(self._write, batch)

    def wait(self) -> None:
        """Wait until every picture is on disk.

        Raises:
            OSError: If one could not be written.
        """
        if self._pending is not None:
            self._pending.result()

    def write_contact_sheet(self) -> Path:
        """Write the contact sheet of the pictures that are on disk."""
        path = self._folder / CONTACT_SHEET_FILE
        write_picture(path, self._sheet.render(), self._texts)
        return path

    def _write(self, batch: Batch) -> None:
        drawing = batch.drawing
        for request, picture, blacked_out in zip(
            batch.requests, drawing.pictures, drawing.blacked_out, strict=True
        ):
            path = self._folder / picture_name(request.index, self._count, request.prompt)
            seed = str(request.seed)
            own = {"prompt": request.prompt, "seed": seed, "index": str(request.index)}
            write_picture(path, picture, {**own, **self._texts})
            self._sheet.add(picture, f"{request.index} · {request.prompt}")
            record = {
                "path": path,
                "prompt": request.prompt,
                "seed": request.seed,
                "index": request.index,
            }
            if blacked_out:
                record["blacked_out"] = True
                logger.warning("the model's safety checker painted %s black", path.name)
            self.records.append(record)
