"""An image with everything that tests want to see of an image."""

import os
from pathlib import Path

import modal

HERE = Path(__file__).parent


def download_weights(name: str) -> None:
    raise AssertionError("recorded, never run")


image = (
    modal.Image.debian_slim(python_version="3.11")
    .apt_install("git", "ffmpeg")
    .pip_install("torch==2.6.0", "diffusers>=0.35", extra_index_url="https://example.invalid/whl")
    .uv_pip_install("accelerate", "peft==0.17.0")
    .env({"HF_HOME": "/cache/huggingface", "QUOTED": "two words $NOT_EXPANDED"})
    .run_function(download_weights, args=("tiny",))
    .add_local_file(__file__, "/root/copied/source.py", copy=True)
    .env({"LATER": "1"})
    .add_local_dir(HERE, "/assets")
)
app = modal.App("image-app", image=image)


@app.function(secrets=[modal.Secret.from_dict({"LATER": "from the secret"})])
def look() -> dict[str, object]:
    return {
        "HF_HOME": os.environ["HF_HOME"],
        "QUOTED": os.environ["QUOTED"],
        "LATER": os.environ["LATER"],
        "copied": Path("/root/copied/source.py").exists(),
        "assets": sorted(path.name for path in Path("/assets").glob("*.py")),
    }
