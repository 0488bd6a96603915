"""What a failed download from the Hub means, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HTTPError,
    RevisionResolutionError,
)

from ml_experiments.cache.hub_errors import HubProblem, causes, hub_problem
from ml_experiments.errors import AuthError, CacheError, ConfigError, Error

_NO_NETWORK_NEEDED = "or use model_name=tiny-digits, which needs no network"


@contextmanager
def explained_download(
    field: str, repo: str, revision: str | None = None, variant: str | None = None
) -> Iterator[None]:
    """Turn what a download from the Hub raises into errors that say what to do.

    Raises:
        ConfigError: If the Hub has no such repository, revision, variant or pipeline.
        AuthError: If the Hub doesn't show the repository to this user.
        CacheError: If the connection failed, or the disk is full.
    """
    try:
        yield
    except HFValidationError as e:
        raise ConfigError(f"{field}={repo!r} is neither a path nor a name on the Hub: {e}") from e
    except (OSError, HTTPError, EntryNotFoundError, RevisionResolutionError) as e:
        raise _explain(e, field, repo, revision) from e
    except ValueError as e:
        if variant is None or "variant" not in str(e):
            raise
        raise ConfigError(
            f"variant={variant!r}: {repo} on the Hub has no weights of that variant; leave "
            f"variant out, or see the names of its files: {ENDPOINT}/{repo}/tree/main"
        ) from e


def _explain(error: Exception, field: str, repo: str, revision: str | None) -> Error:
    page = f"{ENDPOINT}/{repo}"
    problem = hub_problem(error)
    if problem is HubProblem.NO_REPOSITORY and get_token() is not None and _is_refusal(error):
        problem = HubProblem.NOT_ALLOWED
    missing = f"{repo} is not in the cache, {HF_HUB_CACHE}, or only in part"
    match problem:
        case HubProblem.GATED:
            return AuthError(
                f"{repo} is gated: accept its terms on {page}, then set HF_TOKEN to a token of "
                f"that account ({ENDPOINT}/settings/tokens)"
            )
        case HubProblem.NO_REVISION:
            return ConfigError(
                f"revision={revision!r}: {repo} on the Hub has no such branch, tag or commit; "
                f"see {page}/tree/main"
            )
        case HubProblem.NOT_ALLOWED | HubProblem.TOKEN_REJECTED:
            return AuthError(
                f"the Hub does not let the token in use (HF_TOKEN, or `hf auth login`) read "
                f"{repo}; check at {ENDPOINT}/settings/tokens that it is valid and may read it"
            )
        case HubProblem.NO_REPOSITORY:
            return ConfigError(
                f"{field}={repo!r}: the Hub has no such repository; check the spelling, and set "
                "HF_TOKEN if it is private"
            )
        case HubProblem.DISK_FULL:
            return CacheError(
                f"the disk is full: {repo} does not fit into the cache, {HF_HUB_CACHE}; "
                "free some space there, or set HF_HOME to a folder on a larger disk"
            )
        case HubProblem.OFFLINE:
            return CacheError(
                f"{missing}, and HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE, "
                f"{_NO_NETWORK_NEEDED}"
            )
    *_, first = causes(error)
    what = f"{type(first).__name__}: {first}".splitlines()[0]
    return CacheError(
        f"{missing}, and downloading it failed: {what}; check the network connection and try "
        f"again (what was downloaded is kept), {_NO_NETWORK_NEEDED}"
    )


def _is_refusal(error: Exception) -> bool:
    return any(
        getattr(getattr(c, "response", None), "status_code", 0) == 401 for c in causes(error)
    )
