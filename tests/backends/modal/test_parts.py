"""The parts of the Modal backend that need no server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import modal
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.backends.modal.container.log_forwarder import EVENT_MARK
from ml_experiments.backends.modal.cost import choice_that_ran
from ml_experiments.backends.modal.errors import describe_platform_error, platform_errors
from ml_experiments.backends.modal.events import EventReader
from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.backends.modal.outcome import describe_lost_call
from ml_experiments.backends.modal.resources import host_resources
from ml_experiments.backends.modal.secrets import attached_values
from ml_experiments.errors import AuthError, BackendError, ConfigError
from ml_experiments.runs.result import ErrorKind
from ml_experiments.runs.spec import RunSpec

SPEC = RunSpec("run-1", "m:C", {}, 0, "", backend="modal", gpu="a10g", timeout_s=100)


def event(**data: Any) -> bytes:
    return EVENT_MARK + json.dumps({"event": "progress", **data}).encode() + b"\n"


@given(
    pieces=st.lists(
        st.sampled_from([b"text\n", b"no end", event(done=1), b"ml-exp", b"\n", b"\xff"])
    ),
    cuts=st.lists(st.integers(1, 7)),
)
def test_output_and_events_are_told_apart_however_they_arrive(
    pieces: list[bytes], cuts: list[int]
) -> None:
    # an event is a line of its own
    data = b"".join(b"\n" + p if p.startswith(EVENT_MARK) else p for p in pieces)
    reader, heard, position = EventReader(), [], 0
    for cut in [*cuts, len(data) + 1]:
        heard += reader.feed(data[position : position + cut])
        position += cut
    heard.append(reader.flush())
    output = b"".join(item for item in heard if isinstance(item, bytes))
    assert output == data.replace(event(done=1), b"")
    assert sum(isinstance(item, dict) for item in heard) == data.count(EVENT_MARK)


def test_a_line_that_only_looks_like_an_event_is_output() -> None:
    for line in (EVENT_MARK + b"{not json\n", EVENT_MARK + b"[1]\n", EVENT_MARK + b'{"a": 1}\n'):
        assert list(EventReader().feed(line)) == [line]


def test_output_without_a_line_end_is_passed_on_at_once() -> None:
    assert list(EventReader().feed(b"loading ...")) == [b"loading ..."]


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


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (modal.exception.AuthError("Token missing. Could not"), "no Modal token on this machine"),
        (modal.exception.AuthError("invalid"), "rejected the token"),
        (modal.exception.ImageBuildError("pip failed", "im-1"), "could not be built: pip failed"),
        (modal.exception.ResourceExhaustedError("too many GPUs"), "https://modal.com/settings"),
        (modal.exception.InvalidError("bad gpu"), "Modal refused to start: bad gpu"),
        (modal.exception.VersionError("too old"), "pip install --upgrade modal"),
        (modal.exception.ConnectionError("refused"), "can't be reached"),
        (OSError("no route"), "can't be reached"),
        (modal.exception.InternalError("oops"), "status.modal.com"),
    ],
)
def test_each_error_of_the_platform_says_what_to_do(error: Exception, says: str) -> None:
    described = describe_platform_error(error, "start")
    assert says in str(described)
    assert isinstance(described, AuthError) == isinstance(error, modal.exception.AuthError)
    with pytest.raises(BackendError) as e, platform_errors("start"):
        raise error
    if isinstance(described, AuthError):  # Modal's own traceback would hide what to do
        assert e.value.__suppress_context__
        assert e.value.__cause__ is None
    else:
        assert e.value.__cause__ is error


def test_our_own_errors_pass_unchanged() -> None:
    ours = ConfigError("mine")
    with pytest.raises(ConfigError) as e, platform_errors("start"):
        raise ours
    assert e.value is ours


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (modal.exception.FunctionTimeoutError("t"), ErrorKind.TIMEOUT),
        (modal.exception.OutputExpiredError(), ErrorKind.INFRASTRUCTURE),
        (modal.exception.InternalFailure("Task exited with code 137: OOM"), ErrorKind.HOST_OOM),
        (modal.exception.InternalFailure("container lost"), ErrorKind.INFRASTRUCTURE),
        (RuntimeError(""), ErrorKind.INFRASTRUCTURE),
    ],
)
def test_a_lost_call_has_a_kind_a_message_and_a_hint(error: Exception, kind: ErrorKind) -> None:
    described = describe_lost_call(error, SPEC)
    assert described.kind is kind
    assert described.message
    assert described.hint


@pytest.mark.parametrize(
    ("requested", "devices", "ran"),
    [
        ("h100,a100-80gb", ["NVIDIA A100-SXM4-80GB"], "a100-80gb"),
        ("h100,a100-80gb", ["NVIDIA H100 80GB HBM3"], "h100"),
        ("a10g,a100", ["NVIDIA A10"], "a10g"),
        ("t4,l4", ["Tesla T4"], "t4"),
        ("l4,l40s", ["NVIDIA L40S"], "l40s"),
        ("t4,rtx-pro-6000", ["NVIDIA RTX PRO 6000 Blackwell Server Edition"], "rtx-pro-6000"),
        ("a100", ["NVIDIA A100-SXM4-80GB"], "a100"),  # upgraded by Modal, at the same price
        ("t4,b200", [], "b200"),
    ],
)
def test_the_price_is_that_of_the_device_that_ran(
    requested: str, devices: list[str], ran: str
) -> None:
    assert str(choice_that_ran(parse_gpu(requested), devices)) == ran


def test_resources_have_limits_that_grow_with_the_gpus() -> None:
    default = host_resources(parse_gpu("a10g"))
    assert default.cpu_cores == (0.125, 16)
    assert default.memory_mib == (128, 48 * 1024)
    assert host_resources(parse_gpu("t4,h100:8")).cpu_cores[1] == 64
    assert host_resources(parse_gpu("h100:8")).max_memory_gib == 2 * 8 * 80
    assert host_resources(parse_gpu("t4"), cpu=40).cpu_cores == (40, 40)
    assert host_resources(parse_gpu("t4"), cpu=0.5).cpu_cores == (0.5, 16)
    assert host_resources(parse_gpu("t4"), memory_gib=100).memory_mib == (102400, 102400)


def test_values_of_secrets_are_told_from_the_environment_of_a_container() -> None:
    environment = {
        "PATH": "/usr/bin",
        "MODAL_TASK_ID": "ta-1",
        "HF_HOME": "/cache/huggingface",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "DATABASE_URL": "postgres://user:pass@host",
        "EMPTY": "",
    }
    assert attached_values(environment) == ("postgres://user:pass@host",)


def test_the_supported_range_of_modal_is_pinned() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert any(d.startswith("modal") and "<1.7" in d for d in project["dependencies"])


def test_importing_the_package_imports_no_modal() -> None:
    code = (
        "import sys, ml_experiments, ml_experiments.runner.run; assert 'modal' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=60)
