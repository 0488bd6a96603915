"""Whether a process still lives."""

from __future__ import annotations

import dataclasses
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ml_experiments.runs.provenance.processes import ProcessId, this_process


def test_a_process_lives_on_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # psutil computes the time of creation from the clock; setting it would disturb the machine
    record, measure = this_process(), psutil.Process.create_time
    assert record.is_alive()
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: measure(self) + 3600)
    assert record.is_alive() is sys.platform.startswith("linux")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_process_with_an_odd_name_is_known_until_it_ends() -> None:
    code = (
        "import dataclasses, json; from pathlib import Path\n"
        "from ml_experiments.runs.provenance.processes import this_process\n"
        "Path('/proc/self/comm').write_text('a) Z 1 (b')\n"
        "print(json.dumps(dataclasses.asdict(this_process())), flush=True); input()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert child.stdin is not None
    assert child.stdout is not None
    record = ProcessId(**json.loads(child.stdout.readline()))
    assert record.start_ticks is not None
    assert record.is_alive()
    assert not dataclasses.replace(record, start_ticks=record.start_ticks + 1).is_alive()
    assert not dataclasses.replace(record, boot_id="another").is_alive()
    child.stdin.close()
    child.stdout.read()  # it ends, and stays a zombie until it's waited for
    deadline = time.monotonic() + 20
    while record.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.wait()
    child.stdout.close()
    assert not record.is_alive()


def test_a_record_with_only_a_time_of_creation_is_compared_by_that() -> None:
    me = psutil.Process()
    record = ProcessId(socket.gethostname(), me.pid)
    assert dataclasses.replace(record, create_time=me.create_time()).is_alive()
    assert not dataclasses.replace(record, create_time=me.create_time() - 100).is_alive()
    assert record.is_alive()
    assert not dataclasses.replace(record, pid=2**30).is_alive()
