"""Hydra in an environment of its own, which benchmarks share: it needs another OmegaConf."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".venv-hydra"
PACKAGES = ("hydra-core", "hydra-joblib-launcher", "joblib")
APP = """
from dataclasses import dataclass
import hydra
from hydra.core.config_store import ConfigStore

@dataclass
class Config:
    x: int = 1

ConfigStore.instance().store(name="config", node=Config)

@hydra.main(version_base=None, config_name="config")
def main(config):
    return config.x + 1

main()
"""


def python_with_hydra() -> str:
    """Return the interpreter of the environment, which is made by the first benchmark."""
    python, done = FOLDER / "bin" / "python", FOLDER / ".installed"
    if not done.exists():
        venv.create(FOLDER, with_pip=True, clear=True)
        install = [str(python), "-m", "pip", "install", "-q", *PACKAGES]
        subprocess.run(install, check=True, capture_output=True)
        done.touch()
    return str(python)
