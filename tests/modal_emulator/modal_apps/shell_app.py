"""Functions whose containers shells are opened in."""

import time

import modal

app = modal.App("shells")
data = modal.Volume.from_name("shell-data", create_if_missing=True)
secret = modal.Secret.from_dict({"WORD": "grüße"})


@app.function(volumes={"/data": data}, secrets=[secret], cpu=1)
def wait(seconds: float) -> None:
    time.sleep(seconds)


@app.function(gpu="T4")
def on_gpu() -> None:
    return None
