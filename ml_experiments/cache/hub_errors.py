"""What went wrong in a download from the Hub: one classification for all who download."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum, auto

import httpx2
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class HubProblem(Enum):
    """Why a download failed."""

    NOT_A_NAME = auto()
    GATED = auto()
    NO_REVISION = auto()
    TOKEN_REJECTED = auto()
    NOT_ALLOWED = auto()
    NO_REPOSITORY = auto()  # or a private one: the Hub's answer is the same
    OFFLINE = auto()
    UNREACHABLE = auto()
    DISK_FULL = auto()
    OTHER = auto()


def hub_problem(error: BaseException) -> HubProblem:
    """Return what an exception, or one that it was raised from, means."""
    for cause in causes(error):
        match cause:
            case HFValidationError():
                return HubProblem.NOT_A_NAME
            case GatedRepoError():
                return HubProblem.GATED
            case RevisionNotFoundError():
                return HubProblem.NO_REVISION
            case HfHubHTTPError() if problem := _problem_of_status(cause):
                return problem
            case OfflineModeIsEnabled():
                return HubProblem.OFFLINE
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                return HubProblem.UNREACHABLE
            case OSError() if cause.errno in _NO_SPACE:
                return HubProblem.DISK_FULL
    return HubProblem.OTHER


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from, the first cause last."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__


def _problem_of_status(error: HfHubHTTPError) -> HubProblem | None:
    status = error.response.status_code
    if status == 401 and "Invalid credentials" in str(error):
        return HubProblem.TOKEN_REJECTED
    if status == 403:
        return HubProblem.NOT_ALLOWED
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        return HubProblem.NO_REPOSITORY
    return None
