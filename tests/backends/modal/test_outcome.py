"""Calls that ended without an outcome."""

from __future__ import annotations

import modal
import pytest

from ml_experiments.backends.modal.outcome import describe_lost_call
from ml_experiments.runs.result import ErrorKind
from ml_experiments.runs.spec import RunSpec

SPEC = RunSpec("run-1", "m:C", {}, 0, "", backend="modal", gpu="a10g", timeout_s=100)


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
