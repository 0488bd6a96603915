""" "Did you mean" for a word that isn't among the known ones."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known word closest to `word`, or an empty text."""
    by_folded = {name.casefold(): name for name in known}
    closest = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[closest[0]]!r}?)" if closest else ""
