"""The emulator's command and HTTP control, and what tests read of its state."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from modal_emulator import Emulator

MODAL_APPS = Path(__file__).parents[1] / "modal_emulator" / "modal_apps"
COMMAND = [sys.executable, "-m", "modal_emulator"]


def emulator_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command against a server of its own."""
    return subprocess.run(
        [*COMMAND, "run", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=MODAL_APPS,
    )


def request(emulator: Emulator, path: str, body: object = None, token: str | None = None) -> Any:
    """Return what the HTTP control answers."""
    secret = emulator.environment["MODAL_TOKEN_SECRET"]
    data = None if body is None else json.dumps(body).encode()
    http_request = urllib.request.Request(
        f"{emulator.environment['MODAL_EMULATOR_CONTROL_URL']}/{path}",
        data=data,
        headers={"Authorization": f"Bearer {token or secret}"},
    )
    with urllib.request.urlopen(http_request, timeout=30) as answer:
        return json.load(answer)


def app_state(emulator: Emulator, app_id: str) -> str:
    """Return the state of an app."""
    return next(each.state for each in emulator.apps() if each.app_id == app_id)


def app_of_call(emulator: Emulator, function_name: str) -> str:
    """Return the app of a function's last call."""
    return emulator.calls(function_name)[-1].app_id


def input_runs(emulator: Emulator, function_name: str) -> bool:
    """Return whether the first input of a function's last call has a container."""
    calls = emulator.calls(function_name)
    return bool(calls and calls[-1].inputs and calls[-1].inputs[0].task_id)
