"""The NVIDIA GPUs of this machine, as `nvidia-smi` lists them."""

from __future__ import annotations

import shutil
import subprocess

from ml_experiments.settings import visible_cuda_devices

_LIMIT_S = 20.0


def query_gpus(*fields: str) -> list[list[str]]:
    """Return these fields of each GPU, without units.

    Raises:
        FileNotFoundError: If there is no NVIDIA driver.
        OSError: If `nvidia-smi` can't be started.
        subprocess.SubprocessError: If it fails.
    """
    program = shutil.which("nvidia-smi")
    if program is None:  # known without a process that tries every folder
        raise FileNotFoundError("nvidia-smi is not on the PATH")
    command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=True)
    rows = (line.split(",", len(fields) - 1) for line in done.stdout.splitlines() if line.strip())
    return [[value.strip() for value in row] for row in rows if len(row) == len(fields)]


def list_gpus() -> tuple[str, ...]:
    """Return the GPUs as `CUDA_VISIBLE_DEVICES` names them; none without an NVIDIA driver."""
    chosen = visible_cuda_devices()
    if chosen is not None:
        return chosen
    try:
        return tuple(index for (index,) in query_gpus("index"))
    except (OSError, subprocess.SubprocessError):
        return ()
