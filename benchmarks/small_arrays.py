"""How long many small arrays in a result take, beside `np.save` of the same."""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ml_experiments.serialization.writing import encode


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arrays", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    values = {f"layer{number}.weight": np.zeros(8) for number in range(options.arrays)}

    def save(folder: Path) -> None:
        for name, value in values.items():
            np.save(folder / f"{name}.npy", value)

    def write_results(folder: Path) -> None:
        encode(values, folder, "results")

    saved, written = [], []
    for _ in range(options.repeats):  # in turn, so that both meet the same state of the disk
        saved.append(_seconds(save))
        written.append(_seconds(write_results))
    one, other = statistics.median(saved), statistics.median(written)
    sys.stdout.write(
        f"{options.arrays} arrays of 64 bytes, median of {options.repeats}\n"
        f"np.save             {1000 * one:8.0f} ms\n"
        f"as results, synced  {1000 * other:8.0f} ms   {other / one:.1f}x\n"
    )


def _seconds(write: Callable[[Path], None]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        write(Path(folder))
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
