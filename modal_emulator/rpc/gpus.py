"""GPU types and counts that Modal offers, from https://modal.com/docs/guide/gpu (October 2026).

`A10G` and `any` are not in that list, but in the client's own messages and in Modal's examples.

The `modal` client accepts any name, and the service refuses an unknown one when the app starts;
the emulator refuses it when the function is created.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

MAX_COUNT: dict[str, int] = {
    "T4": 8,
    "L4": 8,
    "A10": 4,
    "A10G": 4,
    "L40S": 8,
    "A100": 8,
    "A100-40GB": 8,
    "A100-80GB": 8,
    "RTX-PRO-6000": 8,
    "H100": 8,
    "H100!": 8,
    "H200": 8,
    "B200": 8,
    "B200+": 8,
    "ANY": 4,
}

# name in a request -> type of the GPU that is allocated
_DEVICE = {"A10G": "A10", "A100": "A100-40GB", "H100!": "H100", "B200+": "B200"}
# https://modal.com/docs/examples/gpu_fallbacks
_ANY = ("L4", "A10", "T4")


class UnknownGpuError(ValueError):
    """Raised when Modal does not offer a GPU type, or not that many."""


@dataclass(frozen=True)
class GpuRequest:
    """A GPU type and count as a function requests it."""

    name: str
    count: int

    @property
    def device(self) -> str:
        """The type of the GPU that is allocated, such as `A100-40GB` for `A100`."""
        return device_of(self.name)

    @property
    def candidates(self) -> tuple[GpuRequest, ...]:
        """The requests that meet this one, best first: several for `any`."""
        if self.name != "ANY":
            return (self,)
        return tuple(GpuRequest(name, self.count) for name in _ANY)

    @property
    def in_words(self) -> str:
        """The request as part of a sentence, such as `an H100` or `2 T4`."""
        if self.name == "ANY":
            return "any GPU" if self.count == 1 else f"any {self.count} GPUs"
        if self.count > 1:
            return f"{self.count} {self.name}"
        # the names are spelled out: an "aitch" hundred
        return f"an {self.name}" if self.name[0] in "AHLR" else f"a {self.name}"

    def __str__(self) -> str:
        return self.name if self.count == 1 else f"{self.name}:{self.count}"


def device_of(name: str) -> str:
    """Return the type of the GPU that is allocated for a name."""
    return _DEVICE.get(name, name)


def check_name(name: str) -> str:
    """Return the name in Modal's spelling.

    Raises:
        UnknownGpuError: If Modal does not offer it.
    """
    known = str(name).upper()
    if known in MAX_COUNT:
        return known
    matches = get_close_matches(known, MAX_COUNT, n=1)
    hint = f"; did you mean {matches[0]}?" if matches else "."
    raise UnknownGpuError(
        f'"{name}" is not a GPU type that Modal offers{hint} Known: {", ".join(MAX_COUNT)}.'
    )


def requested_gpu(gpu_config: Any) -> GpuRequest | None:
    """Return what a `GPUConfig` message requests, or None if it requests no GPU.

    Raises:
        UnknownGpuError: If Modal does not offer the type, or not that many.
    """
    if not gpu_config.gpu_type and not gpu_config.count:
        return None
    name = check_name(gpu_config.gpu_type)
    if not 1 <= gpu_config.count <= MAX_COUNT[name]:
        raise UnknownGpuError(
            f'gpu="{name}:{gpu_config.count}" asks for {gpu_config.count} GPUs; '
            f"{name} is offered with 1 to {MAX_COUNT[name]} per container."
        )
    return GpuRequest(name, gpu_config.count)
