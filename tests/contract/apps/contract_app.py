"""The functions whose behaviour the contract states; they run on either server.

A behaviour is checked in the process of the tests. What happens in a container is noted in a
`modal.Dict`, which both sides read.
"""

# no annotations as strings: modal reads the types of a class's parameters
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal

PREFIX = os.environ.get("CONTRACT_PREFIX", "contract")
# what a container can cost at most: tests/contract/limits.py computes with the same numbers
SMALL: dict[str, Any] = {
    "cpu": (0.125, 1.0),
    "memory": (128, 512),
    "max_containers": 2,
    "timeout": 60,
    "scaledown_window": 10,
}

app = modal.App(f"{PREFIX}-app", tags={"contract": PREFIX})
# hidden from the containers by its name, which only the client knows; they get it by its id
volume = modal.Volume.from_name(f"{PREFIX}-volume", create_if_missing=True)
first_secret = modal.Secret.from_dict({"CONTRACT_FIRST": "1", "CONTRACT_BOTH": "first"})
second_secret = modal.Secret.from_dict({"CONTRACT_BOTH": "second"})
settings = modal.Image.debian_slim().env({"CONTRACT_IMAGE": "yes"})


def write_in_image() -> None:
    """Write a file during the build of an image that has six."""
    import six

    Path("/root/from-function").write_text(six.__version__)


def look_at_image() -> dict[str, str]:
    """Return what the steps of an image have left."""
    import six

    names = ("from-command", "from-function", "from-file")
    return {
        "six": six.__version__,
        "variable": os.environ["CONTRACT_IMAGE"],
        "folder": str(Path.cwd()),
        **{name: Path("/root", name).read_text() for name in names},
    }


def count_attempt(notes: modal.Dict, key: str) -> int:
    """Count an attempt at an input, and return which one it is."""
    attempt = notes.get(key, 0) + 1
    notes[key] = attempt
    return attempt


@app.function(**SMALL)
def square(x: int) -> int:
    return x * x


@app.function(**SMALL)
def container_id() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.function(**SMALL)
def sleep_or_square(x: int) -> int:
    time.sleep(1 if x == 0 else 0)
    return x * x


@app.function(**SMALL)
def fail_if_odd(x: int) -> int:
    if x % 2:
        raise ValueError(f"{x} is odd")
    return x


@app.function(**SMALL)
def count(n: int) -> Iterator[int]:
    yield from range(n)


@app.function(**SMALL, retries=modal.Retries(max_retries=2, initial_delay=0.0))
def fail_first(notes: modal.Dict, key: str, failures: int) -> int:
    attempt = count_attempt(notes, key)
    if attempt <= failures:
        raise ValueError(f"attempt {attempt} fails")
    return attempt


@app.function(**SMALL | {"timeout": 1})
def sleep_for(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


@app.function(**SMALL | {"timeout": 1}, retries=modal.Retries(max_retries=1, initial_delay=0.0))
def sleep_long(notes: modal.Dict, key: str) -> None:
    count_attempt(notes, key)
    time.sleep(30)


@app.function(**SMALL)
def wait_for_the_end(notes: modal.Dict, key: str) -> str:
    notes[f"{key}-container"] = os.environ["MODAL_TASK_ID"]
    try:
        for _ in range(100):
            time.sleep(0.3)
    except BaseException as e:
        notes[f"{key}-is-exception"] = isinstance(e, Exception)
        notes[f"{key}-raised"] = type(e).__name__  # last: it is what the test waits for
        raise
    return "never cancelled"


@app.function(**SMALL | {"max_containers": 1})
def one_at_a_time(notes: modal.Dict, key: str, name: str) -> None:
    notes[f"{key}-{name}-started"] = time.time()
    time.sleep(1)
    notes[f"{key}-{name}-ended"] = time.time()


@app.function(**SMALL)
def preempted_once(notes: modal.Dict, key: str) -> int:
    from modal.exception import simulate_preemption

    attempt = count_attempt(notes, key)
    if attempt == 1:
        simulate_preemption(1)
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            notes[f"{key}-interrupted"] = True
            raise
    return attempt


@app.cls(**SMALL | {"timeout": 1}, startup_timeout=30)
class Slow:
    """Takes longer to start than an input may run."""

    amount: int = modal.parameter(default=1)

    @modal.enter()
    def start(self) -> None:
        time.sleep(2 if self.amount == 4 else 0)
        self.starts = 1

    @modal.method()
    def add(self, x: int) -> int:
        self.starts += 1
        return x + self.amount

    @modal.method()
    def inputs(self) -> int:
        return self.starts - 1


@app.cls(**SMALL)
class Exits:
    """Notes in a dict that its container has ended in an orderly way."""

    @modal.method()
    def remember(self, notes: modal.Dict, key: str) -> None:
        self.notes, self.key = notes, key

    @modal.exit()
    def leave(self) -> None:
        self.notes[self.key] = "left"


@app.function(**SMALL, secrets=[first_secret, second_secret], image=settings)
def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("CONTRACT_")}


@app.function(**SMALL, volumes={"/data": volume})
def write(path: str, content: str, *, commit: bool) -> None:
    Path("/data", path).write_text(content)
    if commit:
        volume.commit()


@app.function(**SMALL, volumes={"/data": volume})
def read(path: str) -> str | None:
    file = Path("/data", path)
    return file.read_text() if file.exists() else None


@app.function(**SMALL, volumes={"/data": volume})
def watch(notes: modal.Dict, key: str, path: str) -> list[str | None]:
    """Return what a file holds at first, after another container's commit, and after a reload."""
    file = Path("/data", path)

    def content() -> str | None:
        return file.read_text() if file.exists() else None

    found = [content()]
    notes[f"{key}-started"] = True
    for _ in range(100):
        if notes.get(f"{key}-committed"):
            break
        time.sleep(0.1)
    found.append(content())
    volume.reload()
    return [*found, content()]


@app.function(**SMALL, volumes={"/data": volume})
def reload_with_an_open_file(path: str) -> str:
    with Path("/data", path).open("w") as file:
        file.write("open")
        try:
            volume.reload()
        except RuntimeError as e:
            return str(e)
    return ""


@app.function(**SMALL, volumes={"/data": volume.read_only()})
def write_read_only(path: str) -> str:
    try:
        Path("/data", path).write_text("x")
    except OSError as e:
        return type(e).__name__
    return ""


@app.function(**SMALL)
def say(lines: int) -> None:
    for number in range(lines):
        print(f"line {number}")


@app.local_entrypoint()
def spawn_and_leave(call_file: str, seconds: float) -> None:
    call = nap.spawn(seconds)
    Path(call_file).write_text(call.object_id)


@app.local_entrypoint()
def say_much() -> None:
    say.remote(2000)


@app.function(**SMALL)
def nap(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@app.function(**SMALL)
def die_once(notes: modal.Dict, key: str, how: str) -> int:
    attempt = count_attempt(notes, key)
    if attempt == 1:
        if how == "SIGKILL":
            os.kill(os.getpid(), 9)
        os._exit(3)
    return attempt


@app.function(**SMALL, retries=modal.Retries(max_retries=2, initial_delay=0.0))
def die_and_fail(notes: modal.Dict, key: str) -> int:
    attempt = count_attempt(notes, key)
    if attempt == 2:
        os.kill(os.getpid(), 9)
    if attempt < 4:
        raise ValueError(f"attempt {attempt} fails")
    return attempt
