"""The secrets in the environment."""

from __future__ import annotations

from collections.abc import Mapping

from ml_experiments.redaction.secret_names import is_secret_name, url_passwords
from ml_experiments.settings import whole_environment

_MIN_SECRET_LENGTH = 8


def secret_values(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Return the secrets in the environment, longest first: by their names, and in URLs.

    Records are searched for these values, so short ones, which would match by accident, are
    left out.
    """
    variables = whole_environment() if environment is None else environment
    found = {
        secret
        for name, value in variables.items()
        for secret in (*([value] if is_secret_name(name) else []), *url_passwords(value))
        if len(secret) >= _MIN_SECRET_LENGTH
    }
    return tuple(sorted(found, key=lambda value: (-len(value), value)))
