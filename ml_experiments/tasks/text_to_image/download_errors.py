"""What a failed download from the Hub means, and what to do about it."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from huggingface_hub import get_token
from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from ml_experiments.errors import AuthError, CacheError, ConfigError, Error, suggest

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
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
        causes = _causes(e)
        refusal = _explain_refusal(causes, field, repo, revision)
        raise refusal or _explain_failure(causes, repo) from e
    except ValueError as e:
        if variant is None or "variant" not in str(e):
            raise
        raise ConfigError(
            f"variant={variant!r}: {repo} on the Hub has no weights of that variant; leave "
            f"variant out, or see the names of its files: {ENDPOINT}/{repo}/tree/main"
        ) from e


def _explain_refusal(
    causes: Sequence[BaseException], field: str, repo: str, revision: str | None
) -> Error | None:
    """Return the error for what the Hub answered, if it answered."""
    page = f"{ENDPOINT}/{repo}"
    if _has(causes, GatedRepoError):
        return AuthError(
            f"{repo} is gated: accept its terms on {page}, then set HF_TOKEN to a token of "
            f"that account ({ENDPOINT}/settings/tokens)"
        )
    if _has(causes, RevisionNotFoundError):
        return ConfigError(
            f"revision={revision!r}: {repo} on the Hub has no such branch, tag or commit; "
            f"see {page}/tree/main"
        )
    statuses = {c.response.status_code for c in causes if isinstance(c, HfHubHTTPError)}
    if statuses & {401, 403} and get_token() is not None:
        return AuthError(
            f"the Hub does not let the token in use (HF_TOKEN, or `hf auth login`) read {repo}; "
            f"check at {ENDPOINT}/settings/tokens that it is valid and may read it"
        )
    if _has(causes, RepositoryNotFoundError) or 401 in statuses:
        return ConfigError(
            f"{field}={repo!r}: the Hub has no such repository{suggest(repo, ['tiny-digits'])}; "
            "check the spelling, and set HF_TOKEN if it is private"
        )
    return None


def _explain_failure(causes: Sequence[BaseException], repo: str) -> CacheError:
    """Return the error for a download that ended without an answer of the Hub."""
    if any(isinstance(c, OSError) and c.errno in _NO_SPACE for c in causes):
        return CacheError(
            f"the disk is full: {repo} does not fit into the cache, {HF_HUB_CACHE}; "
            "free some space there, or set HF_HOME to a folder on a larger disk"
        )
    missing = f"{repo} is not in the cache, {HF_HUB_CACHE}, or only in part"
    if _has(causes, OfflineModeIsEnabled):
        return CacheError(
            f"{missing}, and HF_HUB_OFFLINE forbids to download it; unset HF_HUB_OFFLINE, "
            f"{_NO_NETWORK_NEEDED}"
        )
    return CacheError(
        f"{missing}, and downloading it failed: {_first_line(causes[-1])}; check the network "
        f"connection and try again (what was downloaded is kept), {_NO_NETWORK_NEEDED}"
    )


def _has(causes: Sequence[BaseException], kind: type[BaseException]) -> bool:
    return any(isinstance(cause, kind) for cause in causes)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _causes(error: BaseException | None) -> list[BaseException]:
    """Return an error and what it was raised from, the first cause last."""
    causes: list[BaseException] = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes
