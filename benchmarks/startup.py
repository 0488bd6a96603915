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
from pathlib import Path

from hydra_environment import APP, python_with_hydra

BIN = Path(sys.executable).parent
EXPERIMENT = "def trivial(x: int = 1):\n    return x + 1\n"


def pairs_in(folder: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Return what is compared with what; commands run in the folder."""
    (folder / "app.py").write_text(APP)
    (folder / "experiment.py").write_text(EXPERIMENT)
    python = python_with_hydra()
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
