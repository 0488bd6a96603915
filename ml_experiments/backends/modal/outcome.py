"""How a run ended when its container could not say so itself."""

from __future__ import annotations

import re

import modal

from ml_experiments.backends.modal.hints import ModalHints
from ml_experiments.backends.modal.mounts import RUNS_VOLUME
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.runs.spec import RunSpec

_KILLED_FOR_MEMORY = re.compile(r"out of memory|\boom\b|exit code:? 137|signal 9|SIGKILL", re.I)


def describe_lost_call(error: BaseException, spec: RunSpec) -> RunError:
    """Return the error of a run whose call raised this at the client."""
    text = str(error).strip()
    match error:
        case modal.exception.FunctionTimeoutError():
            return RunError(
                ErrorKind.TIMEOUT,
                "TimeoutError",
                f"Modal ended the run after {spec.timeout_s:g} s; it did not stop by itself after "
                f"the soft timeout at {spec.soft_timeout_s:g} s",
                hint=ModalHints().hint_for(ErrorKind.TIMEOUT, None, spec),
            )
        case modal.exception.OutputExpiredError():
            return RunError(
                ErrorKind.INFRASTRUCTURE,
                "OutputExpiredError",
                "Modal keeps a call's output for 7 days, and the volume has no result of the run",
                hint=f"modal volume ls {RUNS_VOLUME} {spec.run_id} shows what there is",
            )
        case _ if _KILLED_FOR_MEMORY.search(text):
            return RunError(
                ErrorKind.HOST_OOM,
                type(error).__name__,
                text,
                hint="if memory was the cause, "
                + ModalHints().hint_for(ErrorKind.HOST_OOM, None, spec),
            )
        case _:
            return RunError(
                ErrorKind.INFRASTRUCTURE,
                type(error).__name__,
                text or "the container ended without a word",
                hint="the log above, or the run's page on Modal's dashboard, has the cause; "
                f"`ml-experiments runs resume {spec.run_id}` tries again",
            )
