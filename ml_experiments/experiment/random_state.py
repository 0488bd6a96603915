"""The state of the random number generators, as JSON: what a resumed run draws next."""

from __future__ import annotations

import base64
import random
import sys
from typing import Any


def random_state() -> dict[str, Any]:
    """Return the state of the generators of Python, and of numpy and torch where imported."""
    version, numbers, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, list(numbers), gauss]}
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        state["numpy"] = [name, keys.tolist(), *rest]
    if torch is not None:
        state["torch"] = _encode(torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["cuda"] = [_encode(one) for one in torch.cuda.get_rng_state_all()]
    return state


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators to what `random_state` has returned; others stay as they are."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if "numpy" in state:
        import numpy as np

        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    if "torch" in state:
        import torch

        torch.set_rng_state(_decode(state["torch"]))
        # a run may go on where there are fewer GPUs, or none
        for device, one in enumerate(state.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(_decode(one), device)


def _encode(tensor: Any) -> str:
    return base64.b64encode(bytes(tensor.tolist())).decode("ascii")


def _decode(encoded: str) -> Any:
    import torch

    return torch.frombuffer(bytearray(base64.b64decode(encoded)), dtype=torch.uint8)
