"""What a call costs on the emulator, against named alternatives in the same run.

    python benchmarks/emulator_calls.py [--cold 7] [--warm 200] [--items 200]

cold   `.remote()` of a function that has no container yet, against a bare subprocess that only
       imports modal: the floor of any container that runs Modal's entrypoint. Target: 0.6 s.
warm   `.remote()` to a container that waits, against one RPC of the same client to the same
       server; a call takes two of these and two of the container's. Target: 10 ms.
map    one item of a `.map()`, against one warm `.remote()`.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import modal

app = modal.App("benchmark-emulator-calls")


@app.function()
def square(x: int) -> int:
    return x * x


def seconds(measured: Callable[[], object]) -> float:
    """Return how long a call took."""
    started = time.perf_counter()
    measured()
    return time.perf_counter() - started


def median(measured: Callable[[], object], n: int) -> float:
    """Return the median of n runs, in seconds."""
    return statistics.median(seconds(measured) for _ in range(n))


def import_modal() -> None:
    subprocess.run([sys.executable, "-c", "import modal"], check=True)


def measure(cold: int, warm: int, items: int) -> list[tuple[str, int, float, str, float]]:
    """Return rows of name, n, seconds, the alternative's name and its seconds."""
    bares, colds = [], []
    for i in range(cold):
        # In turn, so that a busy machine slows both alike.
        bares.append(seconds(import_modal))
        # Each variant has a pool of its own, so its first call starts a container.
        variant = square.with_options(timeout=1000 + i)
        colds.append(seconds(lambda fresh=variant: fresh.remote(2)))  # type: ignore[misc]
    square.remote(2)
    client = modal.Client.from_env()
    rpc = median(client.hello, warm)
    warms = median(lambda: square.remote(2), warm)
    list(square.map(range(items)))
    per_item = seconds(lambda: list(square.map(range(items)))) / items
    return [
        (
            "cold .remote()",
            cold,
            statistics.median(colds),
            "subprocess: import modal",
            statistics.median(bares),
        ),
        ("warm .remote()", warm, warms, "one RPC (ClientHello)", rpc),
        (".map() per item", items, per_item, "warm .remote()", warms),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cold", type=int, default=7, help="cold calls (default: 7)")
    parser.add_argument("--warm", type=int, default=200, help="warm calls (default: 200)")
    parser.add_argument("--items", type=int, default=200, help="items of the map (default: 200)")
    options = parser.parse_args()
    # Here, not at the top: containers import this file too, and have only what was shipped.
    from modal_emulator import Emulator
    from modal_emulator.pytest_plugin import connected

    with Emulator() as emulator, connected(emulator), app.run():
        rows = measure(options.cold, options.warm, options.items)
    print(f"{'what':<18}{'n':>5}{'median ms':>12}   {'against':<26}{'median ms':>10}{'ratio':>8}")
    for name, n, value, other_name, other in rows:
        print(
            f"{name:<18}{n:>5}{value * 1000:>12.1f}   "
            f"{other_name:<26}{other * 1000:>10.1f}{value / other:>7.2f}x"
        )


if __name__ == "__main__":
    main()
