"""The range of modal versions whose protocol the emulator implements."""

from __future__ import annotations

from importlib.metadata import version

SUPPORTED_MINOR_VERSION = "1.6"
RANGE = "modal>=1.6.0,<1.7"


class UnsupportedModalError(RuntimeError):
    """Raised when the version of modal is outside the tested range."""


def check_version(found: str, whose: str) -> None:
    """Refuse a modal version outside the tested range.

    Raises:
        UnsupportedModalError: If it is outside the range.
    """
    if not f"{found}.".startswith(f"{SUPPORTED_MINOR_VERSION}."):
        raise UnsupportedModalError(
            f"{whose} modal {found}, but this emulator supports {RANGE} only. "
            f'Install a tested version: pip install "{RANGE}"; '
            "or a newer ml-experiments that supports your modal."
        )


def check_installed() -> None:
    """Refuse an installed modal outside the tested range.

    Raises:
        UnsupportedModalError: If it is outside the range.
    """
    check_version(version("modal"), "This environment has")
