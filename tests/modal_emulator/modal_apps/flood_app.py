"""An app that prints much more than anyone reads."""

import modal

app = modal.App("flood")


@app.function()
def flood(lines: int) -> None:
    for i in range(lines):
        print(f"line {i} {'x' * 60}")
