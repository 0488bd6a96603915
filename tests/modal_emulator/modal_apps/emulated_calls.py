"""Functions of every kind that the emulator's tests call."""

import asyncio
import importlib.util
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import modal

app = modal.App("emulated-calls")
counter = modal.Dict.from_name("emulated-calls", create_if_missing=True)


def task_id() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.function()
def square(x: int) -> int:
    return x * x


@app.function()
def add(a: int, b: int) -> int:
    return a + b


@app.function()
def where() -> str:
    return task_id()


@app.function()
async def async_square(x: int) -> int:
    await asyncio.sleep(0)
    return x * x


@app.function()
def fail(message: str) -> None:
    raise ValueError(message)


@app.function()
def fail_on_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


@app.function()
def leave(code: int) -> None:
    sys.exit(code)


@app.function()
def crash() -> None:
    os._exit(7)


@app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0))
def fail_until(attempt: int, key: str) -> int:
    attempts = counter.get(key, 0) + 1
    counter[key] = attempts
    if attempts < attempt:
        raise RuntimeError(f"attempt {attempts}")
    return attempts


@app.function()
def count_up(n: int) -> Iterator[int]:
    yield from range(n)


@app.function()
async def count_up_async(n: int) -> AsyncIterator[int]:
    for i in range(n):
        yield i


@app.function()
def call_square(x: int) -> int:
    return square.remote(x) + 1


@app.function(timeout=1, startup_timeout=60)
def sleep_too_long() -> None:
    time.sleep(60)


@app.function()
def sleep(seconds: float, value: str) -> str:
    time.sleep(seconds)
    return value


@app.function()
async def sleep_async(key: str) -> None:
    try:
        counter[key] = "started"
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        counter[key] = "cancelled"
        raise


@app.function()
@modal.concurrent(max_inputs=4)
async def meet(key: str, expected: int) -> list[str]:
    """Return when as many inputs as expected run at the same time."""
    await counter.put.aio(f"{key}-{await counter.len.aio()}-{time.time_ns()}", task_id())
    while True:
        found = [v async for k, v in counter.items.aio() if k.startswith(key)]
        if len(found) >= expected:
            return found
        await asyncio.sleep(0.05)


@app.function()
@modal.batched(max_batch_size=4, wait_ms=2000)
def batch_sizes(xs: list[int]) -> list[int]:
    return [len(xs)] * len(xs)


@app.function(single_use_containers=True)
def where_once() -> str:
    return task_id()


@app.function()
def reverse(data: bytes) -> bytes:
    return data[::-1]


@app.function()
def return_a_lock() -> object:
    return threading.Lock()


@app.function()
def surroundings() -> dict[str, object]:
    return {
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "files": sorted(each.name for each in Path.cwd().iterdir()),
        "found": {
            name: importlib.util.find_spec(name) is not None
            for name in ("ml_experiments", "click", "tests")
        },
        "user_site": sys.flags.no_user_site,
    }
