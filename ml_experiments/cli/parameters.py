"""Kinds of command-line values that click doesn't have."""

from __future__ import annotations

import re

import click

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Duration(click.ParamType[float]):
    """A length of time such as `90`, `45s`, `2h` or `1h30m`; seconds as a float."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        text = str(value).strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            seconds = float(text)
        elif re.fullmatch(r"(\d+(\.\d+)?[smhd])+", text):
            parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", text)
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        else:
            self.fail(f"{value!r} is not a duration; write 90, 45s, 30m, 1h30m or 7d", param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} must be above 0", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """A size such as `500`, `200MB` or `5GB`, in decimal units as tables print them; bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size; write 500, 200MB or 5GB", param, ctx)
        return int(float(match[1]) * _UNITS_BYTES[match[2]])


class Tag(click.ParamType[tuple[str, str]]):
    """A tag written `key=value`."""

    name = "key=value"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the key and the value."""
        if isinstance(value, tuple):
            return value
        key, equals, text = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r} is not a tag; write key=value", param, ctx)
        return key.strip(), text
