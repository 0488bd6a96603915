"""Object ids in the shapes that the modal client accepts."""

from __future__ import annotations

import hashlib
import random
import string

_ALPHANUMERIC = string.ascii_letters + string.digits
_UPPERCASE = string.ascii_uppercase + string.digits
_RANDOM = random.SystemRandom()


def new_id(prefix: str) -> str:
    """Return a fresh id such as `ap-x7…`; the client checks the shapes of `ap-` and `ta-` ids."""
    if prefix == "ta":
        return "ta-" + "".join(_RANDOM.choices(_UPPERCASE, k=26))
    return f"{prefix}-" + "".join(_RANDOM.choices(_ALPHANUMERIC, k=22))


def content_id(prefix: str, *parts: bytes) -> str:
    """Return an id that is the same whenever the content is the same."""
    digest = hashlib.sha256(b"\0".join(parts)).digest()
    number = int.from_bytes(digest, "big")
    letters = []
    for _ in range(22):
        number, remainder = divmod(number, len(_ALPHANUMERIC))
        letters.append(_ALPHANUMERIC[remainder])
    return f"{prefix}-" + "".join(letters)
