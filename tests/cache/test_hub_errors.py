"""What an error of a download means is found among its causes."""

from __future__ import annotations

import errno

import httpx2
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from ml_experiments.cache.hub_errors import HubProblem, causes, hub_problem


@pytest.mark.parametrize(
    ("first", "problem"),
    [
        (OSError(errno.ENOSPC, "no space"), HubProblem.DISK_FULL),
        (OSError(errno.EIO, "input/output"), HubProblem.OTHER),
        (httpx2.ConnectTimeout("slow"), HubProblem.UNREACHABLE),
        (OfflineModeIsEnabled("offline"), HubProblem.OFFLINE),
    ],
)
def test_the_cause_behind_a_missing_file_decides(first: Exception, problem: HubProblem) -> None:
    error = LocalEntryNotFoundError("not in the cache")
    error.__cause__ = first
    assert hub_problem(error) is problem
    assert list(causes(error)) == [error, first]


def test_causes_in_a_circle_end() -> None:
    error, other = OSError("a"), OSError("b")
    error.__context__, other.__context__ = other, error
    assert list(causes(error)) == [error, other]


def test_what_is_no_name_is_told_from_what_is_not_there() -> None:
    with pytest.raises(ValueError, match="must") as caught:
        validate_repo_id("no/such/name")
    assert hub_problem(caught.value) is HubProblem.NOT_A_NAME
