"""Functions with settings that the server has to receive, and refuse when they make no sense."""

import os

import modal

app = modal.App("emulated-settings", tags={"team": "vision"})
volume = modal.Volume.from_name("emulated-settings", create_if_missing=True)
secret = modal.Secret.from_dict({"API_KEY": "from the secret", "EMPTY": ""})


@app.function(
    cpu=(0.5, 2.0),
    memory=(256, 512),
    timeout=123,
    startup_timeout=45,
    retries=3,
    max_containers=2,
    buffer_containers=1,
    scaledown_window=17,
    ephemeral_disk=600_000,
    volumes={"/data": volume},
    secrets=[secret],
    region="eu",
)
def configured() -> str:
    return os.environ["API_KEY"]


@app.function(gpu=["H100:2", "A100-80GB", "L4"])
def on_gpu() -> tuple[str, str]:
    return os.environ["MODAL_EMULATOR_GPU"], os.environ["MODAL_EMULATOR_GPU_COUNT"]


@app.function()
def task_id() -> str:
    return os.environ["MODAL_TASK_ID"]


def one() -> int:
    return 1
