"""Classes that the emulator's tests call."""

import os
from collections.abc import Iterator

import modal

app = modal.App("emulated-classes")
events = modal.Queue.from_name("emulated-classes", create_if_missing=True)


@app.cls()
class Multiplier:
    factor: int = modal.parameter(default=2)
    label: str = modal.parameter(default="plain")

    @modal.enter()
    def enter(self) -> None:
        self.entered = 1
        events.put(f"enter {self.label}")

    @modal.method()
    def multiply(self, x: int) -> int:
        return x * self.factor

    @modal.method()
    def task_id(self) -> str:
        self.entered += 1
        return os.environ["MODAL_TASK_ID"]

    @modal.method()
    def times_entered(self) -> int:
        return self.entered

    @modal.method()
    def multiples(self, n: int) -> Iterator[int]:
        for i in range(n):
            yield i * self.factor

    @modal.exit()
    def leave(self) -> None:
        events.put(f"exit {self.label}")


@app.cls()
class Plain:
    @modal.method()
    def hello(self) -> str:
        return "hello"

    @modal.method()
    async def hello_async(self) -> str:
        return "hello again"


@app.cls()
class Broken:
    @modal.enter()
    def enter(self) -> None:
        raise ArithmeticError("no model here")

    @modal.method()
    def hello(self) -> str:
        return "never"


class Undecorated:
    @modal.method()
    def hello(self) -> str:
        return f"hello from {os.environ['MODAL_EMULATOR_GPU']}"


class Leaver:
    @modal.method()
    def hello(self) -> str:
        return "hello"

    @modal.exit()
    def leave(self) -> None:
        events.put("left")
