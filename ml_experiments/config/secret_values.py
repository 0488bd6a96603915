"""The secrets that a config holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from ml_experiments.redaction.secret_names import is_secret_name, url_passwords


def secret_config_values(config: Any) -> tuple[str, ...]:
    """Return the secrets in a config: `SecretStr`, fields named like one, passwords in URLs."""
    return tuple(sorted({value for value in _secrets(config, "") if value}))


def _secrets(value: Any, name: str) -> Iterator[str]:
    if hasattr(value, "get_secret_value"):
        secret = value.get_secret_value()
        yield secret.decode("utf-8", "replace") if isinstance(secret, bytes) else str(secret)
    elif isinstance(value, str):
        yield from [value] if is_secret_name(name) else url_passwords(value)
    elif hasattr(value, "unicode_string"):  # a URL, as a type of pydantic
        yield from url_passwords(value.unicode_string())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _secrets(item, str(key))
    elif isinstance(value, pydantic.BaseModel):
        for key, item in value:
            yield from _secrets(item, key)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _secrets(getattr(value, field.name), field.name)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _secrets(item, name)
