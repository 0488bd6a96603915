"""What a run used of the machine: the most memory it held, and which GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any


def reset_peak_memory() -> None:
    """Start the count of peak memory anew, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
    finally:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


def memory_and_gpu_use() -> dict[str, Any]:
    """Return `peak_memory_bytes` and, where torch uses a GPU, which one and its peak."""
    use: dict[str, Any] = {"peak_memory_bytes": _peak_memory_bytes()}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        use["gpu"] = torch.cuda.get_device_name()
        use["gpu_count"] = torch.cuda.device_count()
        use["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return use


def _peak_memory_bytes() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
