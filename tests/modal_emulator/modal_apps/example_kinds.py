"""One app with the kinds of functions that public Modal examples have."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import modal

app = modal.App("example-kinds")
volume = modal.Volume.from_name("example-kinds", create_if_missing=True)
seen = modal.Dict.from_name("example-kinds", create_if_missing=True)


@app.function(max_containers=2)
def score(rate: float, depth: int) -> float:
    """Train with a pair of a grid; one of them diverges."""
    if rate > 1:
        raise FloatingPointError(f"diverged at {rate}")
    return rate * depth


@app.cls(max_containers=8)
class Model:
    """A model for each value of its parameter, loaded once per container."""

    name: str = modal.parameter()

    @modal.enter()
    def load(self) -> None:
        self.weights = len(self.name)

    @modal.method()
    def predict(self, x: int) -> tuple[int, str]:
        return self.weights * x, os.environ["MODAL_TASK_ID"]


@app.function(max_containers=1)
@modal.batched(max_batch_size=4, wait_ms=500)
def embed(words: list[str]) -> list[tuple[str, int]]:
    return [(word.upper(), len(words)) for word in words]


@app.function()
def shout(text: str) -> str:
    return text.upper()


@app.function()
def clean(text: str) -> str:
    """The first step of a pipeline, which spawns the second and returns its call."""
    return str(shout.spawn(text.strip()).object_id)


@app.function(max_containers=2)
def job(number: int) -> int:
    time.sleep(0.01)
    return number * number


@app.function()
def scatter_and_gather(numbers: list[int]) -> int:
    return sum(job.map(numbers))


@app.function(volumes={"/data": volume})
def download(name: str, n_lines: int) -> None:
    Path("/data", name).write_text("\n".join(map(str, range(n_lines))))
    volume.commit()


@app.function(volumes={"/data": volume})
def count_lines(name: str) -> int:
    volume.reload()
    return len(Path("/data", name).read_text().splitlines())


@app.function()
@modal.fastapi_endpoint()
def status() -> dict[str, str]:
    return {"status": "ready"}


@app.function()
def train(epochs: int) -> list[float]:
    return [1 / (epoch + 1) for epoch in range(epochs)]


@app.function(retries=modal.Retries(max_retries=2, initial_delay=0.0))
def flaky(key: str) -> str:
    """Crash at the first start and raise at the second; the third succeeds."""
    starts = seen.get(key, 0) + 1
    seen[key] = starts
    if starts == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if starts == 2:
        raise ConnectionError("a flake")
    return f"start {starts}"


@app.function()
def stream(n_tokens: int) -> Iterator[str]:
    for i in range(n_tokens):
        yield f"token {i}"
