"""List and plan on a large cache, against huggingface_hub's own scan and its command line.

2,000 repositories of 12 files, written in huggingface_hub's layout to a temporary folder. Every
measurement is a process of its own, and they take turns, so that a busy machine slows all alike.

    python benchmarks/cache_scan.py
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.hub_cache import commit_of, write_repo

# seconds by the clock, and of the processor, which other processes disturb less
Cost = tuple[float, float]

IN_PROCESS = {
    "huggingface_hub.scan_cache_dir": """
from huggingface_hub import scan_cache_dir
def measured(cache): return len(scan_cache_dir(cache + "/huggingface/hub").repos)
""",
    "cache.scan": """
from ml_experiments.cache.scan.scanning import scan
def measured(cache): return len(scan(cache).items)
""",
    "cache.plan_deletion": """
from ml_experiments.cache.delete.plan import plan_deletion
def measured(cache): return len(plan_deletion(cache).entries)
""",
}
TIMED = """
import sys, time
started, cpu_started = time.perf_counter(), time.process_time()
found = measured(sys.argv[1])
print(time.perf_counter() - started, time.process_time() - cpu_started, found)
"""
WHOLE_PROCESS: dict[str, list[object]] = {
    "hf cache ls": [Path(sys.executable).with_name("hf"), "cache", "ls", "--cache-dir"],
    "ml-experiments cache list --local": [
        *(sys.executable, "-m", "ml_experiments", "cache", "list", "--local", "--cache-dir"),
    ],
}
WATCHED = """
import sys, time
from ml_experiments.cache.usage.watch import CacheWatch
file = sys.argv[2]
with CacheWatch(sys.argv[1]):
    pass  # the imports of the first time are not what a run costs
started = time.process_time()
with CacheWatch(sys.argv[1]) as watch:
    open(file, "rb").close()
assert len(watch.used()) == 1
print(time.process_time() - started)
def opens(n):
    started = time.process_time()
    for _ in range(n): open("/dev/null", "rb").close()
    return (time.process_time() - started) / n
with CacheWatch(sys.argv[1]):
    watched = min(opens(20000) for _ in range(5))
print(watched - min(opens(20000) for _ in range(5)))
"""


def write_cache(folder: Path, repositories: int, files: int) -> None:
    hub = folder / "huggingface" / "hub"
    for number in range(repositories):
        contents = {f"file-{f}.json": f"{number} {f}".encode() * f for f in range(files)}
        write_repo(hub, f"org-{number % 50}/model-{number}", {commit_of(str(number)): contents})


def run(command: list[object]) -> str:
    arguments = [str(part) for part in command]
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def cost_in_process(code: str, cache: Path, repositories: int) -> Cost:
    seconds, cpu_seconds, found = run([sys.executable, "-c", code + TIMED, cache]).split()
    assert int(found) == repositories
    return float(seconds), float(cpu_seconds)


def cost_of_process(command: list[object]) -> Cost:
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    run(command)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def report(title: str, costs: dict[str, list[Cost]]) -> None:
    print(f"\n{title:<38}   wall: median  ratio    CPU: median  ratio")
    baseline = next(iter(costs.values()))
    for name, values in costs.items():
        line = f"  {name:<36}"
        for which in (0, 1):
            mine, theirs = ([cost[which] for cost in found] for found in (values, baseline))
            ratio = statistics.median(mine) / statistics.median(theirs)
            line += f"{statistics.median(mine):>13.2f} s {ratio:>5.2f}x"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repositories", type=int, default=2000)
    parser.add_argument("--files", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder).resolve()
        write_cache(cache, chosen.repositories, chosen.files)
        inner: dict[str, list[Cost]] = {name: [] for name in IN_PROCESS}
        outer: dict[str, list[Cost]] = {name: [] for name in WHOLE_PROCESS}
        for _ in range(chosen.rounds):
            for name, code in IN_PROCESS.items():
                inner[name].append(cost_in_process(code, cache, chosen.repositories))
            targets = (cache / "huggingface" / "hub", cache)
            for (name, command), target in zip(WHOLE_PROCESS.items(), targets, strict=True):
                outer[name].append(cost_of_process([*command, target]))
        print(f"{chosen.repositories} repositories of {chosen.files} files, {chosen.rounds} rounds")
        report("in process", inner)
        report("whole process", outer)
        hub = cache / "huggingface" / "hub" / "models--org-7--model-7"
        file = hub / "snapshots" / commit_of("7") / "file-3.json"
        watch_s, open_s = map(float, run([sys.executable, "-c", WATCHED, cache, file]).split())
        print("\nwatching a run's use of the cache")
        print(f"  start and end                        {watch_s * 1000:.1f} ms")
        print(f"  each file that the run opens         {open_s * 1e6:.1f} us more")


if __name__ == "__main__":
    main()
