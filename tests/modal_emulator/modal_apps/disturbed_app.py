"""Functions that note what happens to them while the emulator makes things go wrong."""

import os
import time
from pathlib import Path

import modal

app = modal.App("disturbed")
events = modal.Queue.from_name("disturbed", create_if_missing=True)
volume = modal.Volume.from_name("disturbed", create_if_missing=True)


@app.function(volumes={"/saved": volume})
def resume(steps: int, key: str) -> dict[str, object]:
    """Count to `steps` on the volume, a step every 50 ms, going on where a former attempt was."""
    progress = Path("/saved", key)
    volume.reload()
    start = int(progress.read_text()) if progress.exists() else 0
    try:
        for step in range(start, steps):
            time.sleep(0.05)
            new = progress.with_suffix(".new")
            new.write_text(str(step + 1))
            new.replace(progress)  # an interrupt before the writing would leave it empty
    except KeyboardInterrupt:
        volume.commit()
        events.put(f"interrupted {key}")
        raise
    return {"started_at": start, "task_id": os.environ["MODAL_TASK_ID"]}


@app.function()
def ignore_interrupts(seconds: float, key: str) -> str:
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:
            events.put(f"ignored {key}")
    return os.environ["MODAL_TASK_ID"]


@app.function()
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(retries=modal.Retries(max_retries=1, initial_delay=0.0))
def nap_with_retry(seconds: float) -> str:
    time.sleep(seconds)
    return os.environ["MODAL_TASK_ID"]


@app.function(gpu=["H200:2", "L40S", "T4"])
def on_gpu() -> str:
    return os.environ["MODAL_EMULATOR_GPU"]


@app.function(volumes={"/saved": volume})
def fill(n_bytes: int) -> int:
    Path("/saved/large").write_bytes(b"x" * n_bytes)
    volume.commit()
    return n_bytes
