"""The pictures of a run: their files, their records for the results, and the contact sheet."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from PIL import Image

from ml_experiments.tasks.text_to_image.batches import Batch
from ml_experiments.tasks.text_to_image.pictures.contact_sheet import ContactSheet
from ml_experiments.tasks.text_to_image.pictures.picture_files import (
    ImageFormat,
    read_texts,
    write_picture,
)
from ml_experiments.tasks.text_to_image.requests import PictureRequest

logger = logging.getLogger(__name__)

CONTACT_SHEET_FILE = "contact-sheet.png"
_FLAGS = {
    "blacked_out": "the model's safety checker painted %s black",
    "overflowed": "%s is black: numbers overflowed in it; try dtype=float32 or bfloat16, or less "
    "guidance",
}


class Gallery:
    """Writes each batch in a thread of its own, while the next one is drawn.

    Attributes:
        texts: For each picture of the run, how it is drawn.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        texts: Sequence[Mapping[str, str]],
        details: Sequence[Mapping[str, Any]],
        sheet: ContactSheet,
        image_format: ImageFormat,
        quality: int,
    ) -> None:
        """Write into `folder`.

        Args:
            folder: Where the files are.
            names: For each picture of the run, the name of its file.
            texts: For each, prompt, seed, index and settings. Written into it.
            details: For each, what its record says besides path, prompt, seed and index.
            sheet: Receives every picture.
            image_format: Of the files.
            quality: Of those that lose some.
        """
        self._folder, self._names, self.texts, self._details = folder, names, texts, details
        self._sheet, self._format, self._quality = sheet, image_format, quality
        self._records: dict[int, dict[str, Any]] = {}
        self._sizes: set[tuple[int, int]] = set()
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

    @property
    def records(self) -> list[dict[str, Any]]:
        """One for each picture that is on disk: path, prompt, seed, index, details, flags."""
        return [self._records[index] for index in sorted(self._records)]

    def common_size(self) -> dict[str, int]:
        """Return the height and width of the pictures; nothing if they differ."""
        if len(self._sizes) != 1:
            return {}
        ((width, height),) = self._sizes
        return {"height": height, "width": width}

    def keep(self, requests: Sequence[PictureRequest]) -> Collection[int]:
        """Take in the pictures that an earlier attempt has drawn like this; return their indices.

        A file is kept if it is whole and was drawn with the same prompt, seed and settings.
        """
        for request in requests:
            path = self._folder / self._names[request.index]
            texts = read_texts(path)
            if texts is None:
                continue
            flags = [flag for flag in _FLAGS if texts.pop(flag, None)]
            if texts == self.texts[request.index]:
                with Image.open(path) as picture:
                    self._take_in(request, flags, picture)
        return self._records.keys()

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
        own = ("prompt", "seed", "index")
        texts = {key: text for key, text in self.texts[0].items() if key not in own}
        common = {k: v for k, v in texts.items() if all(t.get(k) == v for t in self.texts)}
        write_picture(path, self._sheet.render(), common)
        return path

    def _write(self, batch: Batch) -> None:
        for request, drawn in zip(batch.requests, batch.drawn, strict=True):
            path = self._folder / self._names[request.index]
            flags = [flag for flag in _FLAGS if getattr(drawn, flag)]
            texts = {**self.texts[request.index], **dict.fromkeys(flags, "true")}
            write_picture(path, drawn.picture, texts, self._format, self._quality)
            for flag in flags:
                logger.warning(_FLAGS[flag], path.name)
            self._take_in(request, flags, drawn.picture)

    def _take_in(self, request: PictureRequest, flags: Sequence[str], picture: Image.Image) -> None:
        self._sizes.add(picture.size)
        self._sheet.add(request.index, picture, f"{request.index} · {request.prompt}")
        self._records[request.index] = {
            "path": self._folder / self._names[request.index],
            "prompt": request.prompt,
            "seed": request.seed,
            "index": request.index,
            **self._details[request.index],
            **dict.fromkeys(flags, True),
        }
