"""Errors of Modal, and what to do about each."""

from __future__ import annotations

import modal
import pytest

from ml_experiments.backends.modal.errors import describe_platform_error, platform_errors
from ml_experiments.errors import AuthError, BackendError, ConfigError


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
