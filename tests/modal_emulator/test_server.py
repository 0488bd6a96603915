"""A server of its own process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import COMMAND, MODAL_APPS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.usefixtures("without_modal")


def test_a_port_that_is_taken_is_an_error() -> None:
    with Emulator() as emulator:
        port = emulator.environment["MODAL_SERVER_URL"].rpartition(":")[2]
        done = subprocess.run(
            [*COMMAND, "serve", "--port", port], capture_output=True, text=True, timeout=60
        )
    assert done.returncode != 0
    assert "address already in use" in done.stderr.lower()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--state", str(tmp_path / "state")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    exports: dict[str, str] = {}
    while "MODAL_EMULATOR_CONTROL_URL" not in exports:
        line = process.stdout.readline()
        assert line, "the server ended"
        name, _, value = line.removeprefix("export ").strip().partition("=")
        exports[name] = value.strip("'")
    yield process, exports
    if process.poll() is None:
        process.kill()
    process.communicate()


def test_serve_prints_exports_that_work_and_stops_on_sigint(
    served: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    process, exports = served
    done = subprocess.run(
        [sys.executable, "-m", "modal", "run", "deployed_app.py::main"],
        env={**os.environ, **exports},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=MODAL_APPS,
    )
    assert "the answer times n: 84" in done.stdout, done.stderr
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills the children of the killed")
def test_containers_do_not_outlive_a_killed_server(
    served: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    process, exports = served
    code = (
        "import modal, disturbed_app\n"
        "disturbed_app.app.deploy()\n"
        "modal.Function.from_name('disturbed', 'nap').spawn(600)\n"
    )
    environment = {**os.environ, **exports}
    subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=MODAL_APPS, timeout=120, check=True
    )

    def running_pids() -> list[int]:
        request = urllib.request.Request(
            f"{exports['MODAL_EMULATOR_CONTROL_URL']}/containers",
            headers={"Authorization": f"Bearer {exports['MODAL_TOKEN_SECRET']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return [each["pid"] for each in json.load(answer) if each["running_input_ids"]]

    wait_until(running_pids, "the start of the input")
    [pid] = running_pids()
    process.kill()
    wait_until(lambda: not is_alive(pid), "the end of the container")


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended may be waiting for its parent to notice."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_serve_listens_on_loopback_only(
    served: tuple[subprocess.Popen[str], dict[str, str]],
) -> None:
    _, exports = served
    port = int(exports["MODAL_SERVER_URL"].rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    own_address = socket.gethostbyname(socket.gethostname())
    if own_address.startswith("127."):
        pytest.skip("this machine has no address but loopback")
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection((own_address, port), timeout=5)
