"""Start-up, each as a whole process: `--help`, the import, and the run of a trivial experiment.

Against `modal --help`, bare Python, and a Hydra app that does nothing. Hydra is installed into an
environment of its own, as it needs another version of OmegaConf.

    python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

BIN = Path(sys.executable).parent
HYDRA_APP = """
from dataclasses import dataclass
import hydra
from hydra.core.config_store import ConfigStore

@dataclass
class Config:
    x: int = 1

ConfigStore.instance().store(name="config", node=Config)

@hydra.main(version_base=None, config_name="config")
def main(config):
    pass

main()
"""
EXPERIMENT = "def trivial(x: int = 1):\n    return x + 1\n"


def pairs_in(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return what is compared with what; commands run in the folder."""
    (folder / "app.py").write_text(HYDRA_APP)
    (folder / "experiment.py").write_text(EXPERIMENT)
    venv.create(folder / "hydra", with_pip=True)
    python = str(folder / "hydra" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "hydra-core"]
    subprocess.run(install, check=True, capture_output=True)
    ours = str(BIN / "ml-experiments")
    return {
        "--help": ([ours, "--help"], [str(BIN / "modal"), "--help"]),
        "import": ([sys.executable, "-c", "import ml_experiments"], [sys.executable, "-c", "pass"]),
        "run": ([ours, "run", "experiment.py:trivial", "x=3"], [python, "app.py", "x=3"]),
    }


def seconds(command: list[str], folder: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="pairs of runs, after a warm-up")
    runs = parser.parse_args().runs
    print(f"{'what':<8} {'ours ms':>9} {'other ms':>9} {'ratio':>7}   other")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for what, (ours, other) in pairs_in(folder).items():
            pairs = [(seconds(ours, folder), seconds(other, folder)) for _ in range(runs + 1)][1:]
            mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            name = " ".join([Path(other[0]).name, *other[1:]])
            print(f"{what:<8} {mine * 1e3:>9.1f} {theirs * 1e3:>9.1f} {ratio:>7.2f}   {name}")


if __name__ == "__main__":
    main()
