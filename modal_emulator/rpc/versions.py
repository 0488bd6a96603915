"""The range of `modal` versions whose protocol the emulator speaks."""

from __future__ import annotations

from importlib.metadata import version

LOWEST = (1, 6)
BELOW = (1, 7)
RANGE = "modal>=1.6.0,<1.7"


class UnsupportedModalError(RuntimeError):
    """Raised when `modal` is a version that the emulator was not tested with."""


def check_version(found: str, whose: str) -> None:
    """Refuse a `modal` version outside the tested range.

    Raises:
        UnsupportedModalError: names the version, the tested range and the way out.
    """
    numbers = found.split(".")
    if len(numbers) < 2 or not all(number.isdigit() for number in numbers[:2]):
        supported = False
    else:
        supported = LOWEST <= (int(numbers[0]), int(numbers[1])) < BELOW
    if not supported:
        raise UnsupportedModalError(
            f"{whose} modal {found}, but this emulator speaks the protocol of {RANGE} only. "
            f'Install a tested version: pip install "{RANGE}"; '
            "or a newer ml-experiments that knows your modal."
        )


def check_installed() -> str:
    """Return the installed `modal` version after checking it."""
    found = version("modal")
    check_version(found, "This environment has")
    return found
