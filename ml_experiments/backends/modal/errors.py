"""What Modal itself refuses or fails at, as errors of this package that say what to do."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Iterator
from concurrent.futures import Future

import grpclib
import modal

from ml_experiments.errors import AuthError, BackendError, Error

ANSWER_LIMIT_S = 15.0
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
_RUN_LOCALLY = (
    'or run on this machine: ml-experiments run ... --backend local, or in Python backend="local"'
)
LIST_INSTEAD = "or list what is here: ml-experiments runs list --offline"


@contextlib.contextmanager
def platform_errors(action: str, alternative: str = _RUN_LOCALLY) -> Iterator[None]:
    """Turn what Modal raises in a block into a `BackendError`.

    Args:
        action: What was being done, to finish "Modal could not …".
        alternative: What to do without a token or a network instead.

    Raises:
        AuthError: If there is no token, or Modal rejected it.
        BackendError: For all else that Modal refuses or fails at.
    """
    try:
        yield
    except Error:
        raise
    except (modal.exception.Error, grpclib.GRPCError, OSError, RuntimeError) as e:
        described = describe_platform_error(e, action, alternative)
        if isinstance(described, AuthError):
            raise described from None  # says all; how Modal's client came to it helps nobody
        raise described from e


def require_access(alternative: str = _RUN_LOCALLY) -> None:
    """Make sure that Modal accepts this machine's token, and has the environment that is set.

    Args:
        alternative: See `platform_errors`.

    Raises:
        AuthError: If there is no token, or Modal rejected it.
        BackendError: If the environment does not exist, or Modal can't be reached.
    """
    answer: Future[None] = Future()

    def ask() -> None:
        try:
            modal.Client.from_env().hello()
            if environment:
                modal.Environment.from_name(environment).hydrate()
        except Exception as e:  # noqa: BLE001 - raised again where it is waited for
            answer.set_exception(e)
        else:
            answer.set_result(None)

    environment = modal.config.config.get("environment")
    # the client itself would try for a minute; it can't be told not to
    threading.Thread(target=ask, daemon=True, name="modal-hello").start()
    with platform_errors("check the token", alternative):
        try:
            answer.result(ANSWER_LIMIT_S)
        except TimeoutError as e:
            text = f"no answer within {ANSWER_LIMIT_S:g} s"
            raise modal.exception.ConnectionError(text) from e
        except modal.exception.NotFoundError as e:
            # without this check, all that is looked up in it would seem to be what is missing
            raise BackendError(
                f"there is no Modal environment {environment!r}; `modal environment list` shows "
                "those that exist, and MODAL_ENVIRONMENT or `modal config set-environment` "
                "chooses one"
            ) from e


def describe_platform_error(
    error: BaseException, action: str, alternative: str = _RUN_LOCALLY
) -> BackendError:
    """Return the error that tells a user what happened and what to do about it."""
    text = describe_briefly(error)
    match error:
        case modal.exception.AuthError() if "missing" in text.lower():
            return AuthError(
                "there is no Modal token on this machine; get one with: modal token new "
                f"({alternative})"
            )
        case modal.exception.AuthError():
            return AuthError(
                f"Modal rejected the token ({text}); get a new one with: modal token new "
                f"({alternative})"
            )
        case modal.exception.ImageBuildError():
            return BackendError(
                f"the image could not be built: {text}; the build log, above or on Modal's "
                "dashboard, has the cause. Check the names and versions of --pip and requirements"
            )
        case modal.exception.PermissionDeniedError():
            return BackendError(
                f"Modal did not allow to {action}: {text}; ask an owner of the workspace for the "
                "right, or use a token that has it: modal token new"
            )
        case modal.exception.ResourceExhaustedError():
            return BackendError(
                f"Modal did not allow to {action}: {text}; wait for other runs to end, or raise "
                "the limit at https://modal.com/settings"
            )
        case modal.exception.InvalidError():
            return BackendError(f"Modal refused to {action}: {text}")
        case modal.exception.VersionError():
            return BackendError(f"{text}; upgrade with: pip install --upgrade modal")
        case OSError() if error.errno in _OF_THE_DISK:
            return BackendError(f"could not {action}: {text}; this machine's disk is the cause")
        case FileNotFoundError():
            return BackendError(f"Modal could not {action}: {text}")
        case modal.exception.ConnectionError() | OSError():
            return BackendError(
                f"Modal can't be reached, so it could not {action}: {text}; check the network "
                f"and https://status.modal.com, {alternative}"
            )
        case _:
            return BackendError(
                f"Modal could not {action}: {type(error).__name__}: {text}; "
                "https://status.modal.com says whether it has a problem"
            )


def describe_briefly(error: BaseException) -> str:
    """Return an exception's text, or its type where it has none."""
    return str(error).strip() or type(error).__name__


@contextlib.contextmanager
def without_modals_output() -> Iterator[None]:
    """Let apps that are started in the block print nothing by themselves.

    Under `modal run` Modal's display is on for the whole process, and would print the logs of
    a run a second time. There is no public way to turn it off; the tests run with each
    supported version of modal.
    """
    from modal._output.manager import DisabledOutputManager, OutputManager

    before = OutputManager.get()
    OutputManager._set(DisabledOutputManager())
    try:
        yield
    finally:
        OutputManager._set(before)
