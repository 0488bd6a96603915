"""Which GPUs of this machine runs may use."""

from __future__ import annotations

import subprocess

from ml_experiments.settings import visible_cuda_devices


def list_gpus() -> tuple[str, ...]:
    """Return the GPUs as `CUDA_VISIBLE_DEVICES` names them; none without an NVIDIA driver."""
    chosen = visible_cuda_devices()
    if chosen is not None:
        return chosen
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in found.stdout.splitlines() if line.strip())
