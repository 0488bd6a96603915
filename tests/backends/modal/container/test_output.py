"""What a container prints goes to the log and to Modal."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from ml_experiments.backends.modal.container.log_forwarder import EVENT_MARK


def event(**data: Any) -> bytes:
    return EVENT_MARK + json.dumps({"event": "progress", **data}).encode() + b"\n"


def relay(tmp_path: Path, source: str) -> tuple[bytes, bytes]:
    """Run a script whose output is captured; return what came out and the log file."""
    log = tmp_path / "log.txt"
    script = f"""
        import os, sys
        from pathlib import Path
        from ml_experiments.backends.modal.container.output import ContainerOutput
        log = Path({str(log)!r})
        output = ContainerOutput()
        {textwrap.indent(textwrap.dedent(source), "        ").strip()}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr, log.read_bytes()


def test_all_that_a_process_prints_reaches_the_log_and_the_output_in_order(tmp_path: Path) -> None:
    out, log = relay(
        tmp_path,
        """
        with output.capture(log, ["planted-secret"]):
            print("from Python: planted-secret")
            sys.stdout.flush()
            os.write(2, b"from a library: planted-")
            os.write(1, b"secret\\n")
            os.system("echo from a child")
            output.send({"event": "progress", "done": 1})
            print("last, without an end", end="")
        print("after")
        """,
    )
    text = b"from Python: <redacted>\nfrom a library: <redacted>\nfrom a child\n"
    assert log == text + b"last, without an end"
    assert out == text + event(done=1) + b"last, without an endafter\n"


def test_what_is_printed_before_a_crash_gets_out(tmp_path: Path) -> None:
    out, log = relay(
        tmp_path,
        """
        with output.capture(log, []):
            print("the last words", flush=True)
            os.abort()
        """,
    )
    assert b"the last words" in out
    assert log == b"the last words\n"


def test_one_relay_serves_several_runs(tmp_path: Path) -> None:
    out, log = relay(
        tmp_path,
        """
        with output.capture(log.with_name("first.txt"), ["aaaaaaaa"]):
            print("1 aaaaaaaa bbbbbbbb")
        with output.capture(log, ["bbbbbbbb"]):
            print("2 aaaaaaaa bbbbbbbb")
        """,
    )
    assert (tmp_path / "first.txt").read_bytes() == b"1 <redacted> bbbbbbbb\n"
    assert log == b"2 aaaaaaaa <redacted>\n"
    assert out == b"1 <redacted> bbbbbbbb\n2 aaaaaaaa <redacted>\n"
