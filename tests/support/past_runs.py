"""Runs on Modal that have ended, without running anything."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.run_folders import write_run


def write_past_run(
    runs_dir: Path,
    number: int,
    gpu: str | None,
    *,
    seconds: float = 2.0,
    pid: int = 1,
    oom: bool = False,
    peak: float | None = None,
    devices: Sequence[str] = (),
    experiment: str = "train.Train",
    config: dict[str, Any] | None = None,
    nodes: int | None = None,
) -> None:
    """Write a run of four images that took three seconds to set up; without a GPU type, here."""
    modal = {"cpu_cores": (2.0, 16.0), "memory_mib": (4096, 32768), "nodes": nodes}
    folder = write_run(
        runs_dir,
        f"20261125-1200{number:02}-0000000",
        experiment=experiment,
        config=config,
        results={"images": [0] * 4},
        status="error" if oom else "success",
        backend="modal" if gpu else "local",
        gpu=gpu,
        manifest={
            "process": {"hostname": gpu or "here", "pid": pid},
            "environment": {"gpus": [{"name": name} for name in devices]},
            **({"modal": modal} if gpu else {}),
        },
    )
    record = json.loads(folder.result_file.read_text())
    record["timings"] = {"import_s": 1.0, "setup_s": 2.0, "run_s": seconds, "total_s": seconds + 3}
    if oom:
        record["error"] = {"kind": "cuda_oom", "type": "RuntimeError", "message": "no room"}
    if peak is not None:
        record["environment"] = {"peak_gpu_memory_bytes": int(peak * 2**30)}
    folder.result_file.write_text(json.dumps(record))
