"""Start-up: `ml-experiments --help` against `modal --help`, and the import against bare Python.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
PAIRS = {
    "--help": ([str(BIN / "ml-experiments"), "--help"], [str(BIN / "modal"), "--help"]),
    "import": (
        [sys.executable, "-c", "import ml_experiments"],
        [sys.executable, "-c", "pass"],
    ),
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="pairs of runs, after a warm-up")
    runs = parser.parse_args().runs
    print(f"{'what':<8} {'ours ms':>9} {'other ms':>9} {'ratio':>7}   other")
    for what, (ours, other) in PAIRS.items():
        pairs = [(seconds(ours), seconds(other)) for _ in range(runs + 1)][1:]
        mine, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        name = " ".join([Path(other[0]).name, *other[1:]])
        print(f"{what:<8} {mine * 1e3:>9.1f} {theirs * 1e3:>9.1f} {ratio:>7.2f}   {name}")


if __name__ == "__main__":
    main()
