"""Draws pictures in batches, smaller ones when memory runs out."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL.Image import Image

from ml_experiments.errors import InsufficientMemoryError
from ml_experiments.tasks.text_to_image.requests import PictureRequest

logger = logging.getLogger(__name__)

# Where `auto` starts. The pixels fit common models on the GPUs that they are run on, and leave a
# CPU, where the system may kill the process rather than refuse memory, with small batches.
_MAX_BATCH = 32
_PIXELS_PER_BATCH = {"cuda": 16 * 512 * 512, "mps": 4 * 512 * 512, "cpu": 2 * 512 * 512}
_OUT_OF_MEMORY_MESSAGES = (
    "DefaultCPUAllocator: can't allocate",
    "DefaultCPUAllocator: not enough",
    "could not create a primitive",  # all that oneDNN says when the host's memory is refused
    "could not create a memory object",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class Drawn:
    """A picture as a pipeline drew it.

    Attributes:
        blacked_out: Whether the model's safety checker painted it black.
        overflowed: Whether it holds values that are no numbers: it is black.
    """

    picture: Image
    blacked_out: bool
    overflowed: bool


@dataclass(frozen=True)
class Batch:
    """Pictures that were asked for and drawn together.

    Attributes:
        seconds: How long that took.
        done: How many pictures of the run there are with these.
    """

    requests: Sequence[PictureRequest]
    drawn: Sequence[Drawn]
    seconds: float
    done: int


@dataclass
class BatchSize:
    """How many pictures are drawn together.

    Attributes:
        wanted: What the config says.
        pixels: At most in a batch, where the size is `auto`.
        too_large: Sizes that ran out of memory.
    """

    wanted: int | Literal["auto"]
    pixels: int
    too_large: list[int] = field(default_factory=list)

    @classmethod
    def choose(cls, wanted: int | Literal["auto"], device: str) -> BatchSize:
        """Take the wanted size, or start `auto` at one that suits a device: cuda, mps or cpu."""
        return cls(wanted, _PIXELS_PER_BATCH[device])

    def of(self, pixels: int) -> int:
        """Return how many pictures of so many pixels are drawn together."""
        if self.wanted != "auto":
            return self.wanted
        return max(1, min(_MAX_BATCH, self.pixels // pixels))

    def reported(self, pixels: int, count: int) -> int:
        """Return the size for a run of so many pictures of so many pixels."""
        return self.of(pixels) if self.wanted != "auto" else min(self.of(pixels), count)

    def shrink(self, tried: int, pixels: int, error: BaseException) -> None:
        """Halve the size, after drawing `tried` pictures together ran out of memory.

        Raises:
            InsufficientMemoryError: If it was a single picture.
        """
        self.too_large.append(tried)
        if tried == 1:
            raise InsufficientMemoryError(
                "not even one picture at a time fits in memory: choose a smaller height and "
                "width, set attention_slicing, vae_tiling or (with a GPU) cpu_offload to true, "
                "use dtype=float16 or quantization=int8, or run on a larger GPU type"
            ) from error
        self.pixels = tried // 2 * pixels
        logger.warning("out of memory at %d pictures a batch; going on with %d", tried, tried // 2)


def draw_in_batches(
    draw: Callable[[Sequence[PictureRequest], int], Sequence[Drawn]],
    requests: Sequence[PictureRequest],
    batch_size: BatchSize,
    pixels_of: Callable[[PictureRequest], int],
    kept: Collection[int] = (),
) -> Iterator[Batch]:
    """Draw all pictures, those with the same settings together.

    Where `batch_size` may shrink, it does when memory runs out.

    Args:
        draw: Draws pictures; it also gets how many there are already.
        requests: All pictures of the run.
        batch_size: How many to draw together.
        pixels_of: Returns the size of a picture.
        kept: Indices of the pictures that are there already.

    Raises:
        InsufficientMemoryError: If the size may shrink and a single picture doesn't fit.
    """
    groups: dict[Any, list[PictureRequest]] = {}
    for request in requests:
        groups.setdefault(request.batch_key, []).append(request)
    done, count = 0, len(kept)
    for group in groups.values():
        pixels, position = pixels_of(group[0]), 0
        while position < len(group):
            # whatever is kept, batches end where they would have ended otherwise
            chosen = group[position : position + batch_size.of(pixels)]
            missing = [request for request in chosen if request.index not in kept]
            started = time.perf_counter()
            try:
                drawn = draw(missing, count) if missing else ()
            except (RuntimeError, MemoryError) as e:
                if batch_size.wanted != "auto" or not is_out_of_memory(e):
                    raise
                batch_size.shrink(len(missing), pixels, e)
            else:
                done += len(chosen)
                count += len(missing)
                position += len(chosen)
                if missing:
                    yield Batch(missing, drawn, time.perf_counter() - started, done)
                continue
            _free_memory()  # not in the handler, where the exception still holds the tensors


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that the memory of a GPU or of the host ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY_MESSAGES)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
