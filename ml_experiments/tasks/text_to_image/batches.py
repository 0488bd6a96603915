"""Draws pictures in batches, smaller ones when memory runs out."""

from __future__ import annotations

import gc
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from PIL.Image import Image

from ml_experiments.errors import InsufficientMemoryError

logger = logging.getLogger(__name__)

# Where `auto` starts. The pixels fit common models on the GPUs that they are run on, and leave a
# CPU, where the system may kill the process rather than refuse memory, with small batches.
_LARGEST_BATCH = 32
_PIXELS_PER_BATCH = {"cuda": 16 * 512 * 512, "mps": 4 * 512 * 512, "cpu": 2 * 512 * 512}
_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator: can't allocate",
    "DefaultCPUAllocator: not enough",
    "could not create a primitive",  # all that oneDNN says when the host's memory is refused
    "could not create a memory object",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


@dataclass(frozen=True)
class PictureRequest:
    """One picture to draw.

    Attributes:
        index: Its place among all pictures of the run.
        seed: Seeds the picture's own generator, so that nothing else decides what is drawn.
    """

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Drawing:
    """What a pipeline drew at once.

    Attributes:
        blacked_out: For each picture, whether the model's safety checker painted it black.
    """

    pictures: Sequence[Image]
    blacked_out: Sequence[bool]


@dataclass(frozen=True)
class Batch:
    """Pictures that were asked for and drawn together, and how long that took."""

    requests: Sequence[PictureRequest]
    drawing: Drawing
    seconds: float


def plan_pictures(prompts: Sequence[str], num_images: int, seed: int) -> list[PictureRequest]:
    """Return the pictures of a run; a picture depends on seed, prompt and its number only."""
    numbered = [(prompt, number) for prompt in prompts for number in range(num_images)]
    return [
        PictureRequest(index, prompt, _picture_seed(seed, prompt, number))
        for index, (prompt, number) in enumerate(numbered)
    ]


def _picture_seed(seed: int, prompt: str, number: int) -> int:
    digest = hashlib.sha256(f"{seed}\n{number}\n{prompt}".encode()).digest()
    return int.from_bytes(digest[:6])  # exact in JSON readers that hold numbers as floats


@dataclass
class BatchSize:
    """How many pictures are drawn together.

    Attributes:
        too_large: Sizes that ran out of memory.
    """

    size: int
    may_shrink: bool
    too_large: list[int] = field(default_factory=list)

    @classmethod
    def choose(
        cls, wanted: int | Literal["auto"], device: str, pixels: int, count: int
    ) -> BatchSize:
        """Take the wanted size, or start `auto` at one that suits a device and its pictures.

        Args:
            wanted: What the config says.
            device: `cuda`, `mps` or `cpu`.
            pixels: Of one picture.
            count: How many pictures there are to draw.
        """
        if wanted != "auto":
            return cls(wanted, may_shrink=False)
        fitting = _PIXELS_PER_BATCH[device] // pixels
        return cls(max(1, min(_LARGEST_BATCH, fitting, count)), may_shrink=True)

    def shrink(self, tried: int, error: BaseException) -> None:
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
        self.size = tried // 2
        logger.warning("out of memory at %d pictures a batch; going on with %d", tried, self.size)


def draw_in_batches(
    draw: Callable[[Sequence[PictureRequest]], Drawing],
    requests: Sequence[PictureRequest],
    batch_size: BatchSize,
) -> Iterator[Batch]:
    """Draw all pictures in order; where `batch_size` may shrink, it does when memory runs out.

    Raises:
        InsufficientMemoryError: If the size may shrink and a single picture doesn't fit.
    """
    position = 0
    while position < len(requests):
        chosen = requests[position : position + batch_size.size]
        started = time.perf_counter()
        try:
            drawing = draw(chosen)
        except (RuntimeError, MemoryError) as e:
            if not batch_size.may_shrink or not is_out_of_memory(e):
                raise
            batch_size.shrink(len(chosen), e)
        else:
            yield Batch(chosen, drawing, time.perf_counter() - started)
            position += len(chosen)
            continue
        _free_memory()  # not in the handler, where the exception still holds the tensors


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an exception means that the memory of a GPU or of the host ran out."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
