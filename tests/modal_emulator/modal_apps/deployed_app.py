"""An app for `modal deploy` and `modal run`; ANSWER is rewritten for a redeployment."""

import os
import sys
import time

import modal

ANSWER = 42

app = modal.App("deployed")


@app.function()
def answer() -> int:
    return ANSWER


@app.function()
def say(word: str, times: int = 1) -> str:
    for i in range(times):
        print(f"{word} {i}")
    print("to stderr", file=sys.stderr)
    return word


@app.function()
def sleep(seconds: float) -> str:
    print("sleeping", flush=True)
    time.sleep(seconds)
    return "slept"


@app.function()
def task_id() -> str:
    return os.environ["MODAL_TASK_ID"]


@app.function()
def fail() -> None:
    raise ValueError("on purpose")


@app.cls()
class Greeter:
    name: str = modal.parameter(default="you")

    @modal.method()
    def greet(self) -> str:
        return f"hello {self.name}"


@app.local_entrypoint()
def main(n: int = 2) -> None:
    print("the answer times n:", n * answer.remote())


@app.local_entrypoint()
def spawn_and_leave(seconds: float = 3.0) -> None:
    print("call:", sleep.spawn(seconds).object_id, flush=True)


@app.local_entrypoint()
def sleep_long() -> None:
    print(sleep.remote(600))
