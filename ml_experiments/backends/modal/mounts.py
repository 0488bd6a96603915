"""The volumes of a container, and the variables that lead libraries to them."""

from __future__ import annotations

from pathlib import Path

import modal

from ml_experiments.settings import whole_environment

CACHE_VOLUME = "hf-model-cache"
CACHE_MOUNT = "/cache"
RUNS_VOLUME = "ml-experiments-runs"
RUNS_MOUNT = "/runs"
# on the volume of runs: see remote_runs.py
ENDED_FOLDER, CONTROLLED_FOLDER = ".ended", ".runs"
CANCEL_FILE, AT_ONCE = ".cancel", b"at once"

ENVIRONMENT = {
    "HF_HOME": f"{CACHE_MOUNT}/huggingface",
    "HF_HUB_CACHE": f"{CACHE_MOUNT}/huggingface/hub",
    "HF_DATASETS_CACHE": f"{CACHE_MOUNT}/huggingface/datasets",
    # read by transformers before version 5 only
    "TRANSFORMERS_CACHE": f"{CACHE_MOUNT}/huggingface/transformers",
    "TORCH_HOME": f"{CACHE_MOUNT}/torch",
    "HF_XET_HIGH_PERFORMANCE": "1",
    "ML_EXPERIMENTS_RUNS_DIR": RUNS_MOUNT,
}


def cache_volume() -> modal.Volume:
    """Return the volume of the Hugging Face cache."""
    return modal.Volume.from_name(CACHE_VOLUME, create_if_missing=True)


def runs_volume() -> modal.Volume:
    """Return the volume of run folders: version 2, made for many small files."""
    return modal.Volume.from_name(RUNS_VOLUME, create_if_missing=True, version=2)


def mounted_cache_dir() -> Path:
    """Return the folder in which this container has the cache volume."""
    return Path(whole_environment()["HF_HOME"]).parent
