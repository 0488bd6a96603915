"""`ml-experiments cache` as a whole process, and an HF_HOME for it to act on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.hub_cache import commit_of, set_age, write_repo
from tests.support.hub_server import HubServer

COMMAND = [sys.executable, "-m", "ml_experiments", "cache"]
A, B = commit_of("a"), commit_of("b")


def write_home(folder: Path) -> Path:
    """Write an HF_HOME with two models and a dataset."""
    hub = folder / "huggingface" / "hub"
    write_repo(hub, "org/one", {A: {"config.json": b"{}", "m.safetensors": b"w" * 5000}})
    set_age(write_repo(hub, "org/two", {B: {"config.json": b"[]"}}), days=60)
    write_repo(hub, "org/rows", {A: {"data.csv": b"a,b"}}, kind="dataset")
    return folder / "huggingface"


def call(
    home: Path, *arguments: str, hub: HubServer | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command on an HF_HOME, without a terminal."""
    environment = {**os.environ, "HF_HOME": str(home), **(hub.environment() if hub else {})}
    environment.pop("HF_TOKEN", None)
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """Return what a command that succeeded printed as JSON."""
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the names that a list command printed as JSON."""
    return [item["name"] for item in answer(done)["items"]]
