"""Patterns that choose from the cache: `stabilityai/*`, `*sdxl*`, `org/name@abc123`.

A pattern is compared with names that a scan found. It is never made into a path, so nothing
outside the cache can be named by one; the checks here are for clear messages.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from ml_experiments.errors import CacheError, suggest

_MAX_LENGTH = 512
_ALLOWED = "a name as on the Hub, with * ? [abc] as wildcards and @REVISION at its end"
_MIN_COMMIT_PREFIX = 4


@dataclass(frozen=True)
class NamePattern:
    """A glob over names, and a revision: a commit hash, its beginning, a branch or a tag."""

    given: str
    name: str
    revision: str | None

    @classmethod
    def parse(cls, given: str) -> NamePattern:
        """Read a pattern.

        Raises:
            CacheError: If it is empty, too long, a path, or not a glob.
        """
        if not isinstance(given, str):
            raise CacheError(f"a pattern is a string, not {type(given).__name__}: {_ALLOWED}")
        if not given.strip():
            raise CacheError(f"the pattern is empty; use '*' to mean everything, or {_ALLOWED}")
        if len(given) > _MAX_LENGTH:
            raise CacheError(f"the pattern has {len(given)} characters; {_MAX_LENGTH} are allowed")
        name, at, revision = given.partition("@")
        problem = _problem(name) or (_revision_problem(revision) if at else None)
        if problem:
            shown = repr(given) if given.isprintable() else ascii(given)
            raise CacheError(f"{shown} is not a pattern: {problem}; allowed: {_ALLOWED}")
        return cls(given, _fold(name), revision if at else None)

    def matches(self, name: str) -> bool:
        """Return whether a name is meant, upper and lower case alike."""
        return fnmatch.fnmatchcase(_fold(name), self.name)

    def matches_revision(self, commit: str, refs: tuple[str, ...]) -> bool:
        """Return whether a revision is meant, by its commit hash or by a branch or tag."""
        if self.revision is None or self.revision in refs:
            return True
        return len(self.revision) >= _MIN_COMMIT_PREFIX and commit.lower().startswith(
            self.revision.lower()
        )


def suggest_name(pattern: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for a pattern that matches none of the names, or nothing."""
    known = list(names)
    of_organisation = f"{pattern.rstrip('/')}/"
    if any(name.casefold().startswith(of_organisation.casefold()) for name in known):
        return f" (did you mean {of_organisation + '*'!r}?)"
    folded = _fold(pattern)  # a pattern where one name is asked for, or a name without its owner
    for name in map(_fold, known):
        if fnmatch.fnmatchcase(name, folded) or name.endswith(f"/{folded}"):
            return suggest(name, known)
    return suggest(pattern, known)


def check_revision(revision: str) -> None:
    """Make sure that a string can be a commit hash, branch or tag.

    Raises:
        CacheError: If it can't; a path that leads elsewhere, for one.
    """
    if (problem := _revision_problem(revision)) is not None:
        raise CacheError(f"{problem}; see the branches and tags on the repository's page")


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _problem(name: str) -> str | None:
    if not name:
        return "there is no name before '@'"
    if name.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "it is a path, not a name"
    if "\\" in name:
        return "it has a backslash"
    if ".." in name:
        return "it has '..'"
    if not name.isprintable() or name != name.strip():
        return "it has a space at an end, or characters that can't be printed"
    if name.endswith("/"):
        return f"it ends in '/' (did you mean {name + '*'!r}?)"
    if name.count("[") != len(re.findall(r"\[!?\]?[^\]]*\]", name)):
        return "a '[' is never closed"
    return None


def _revision_problem(revision: str) -> str | None:
    if not revision:
        return "there is no revision after '@'"
    if ".." in revision or revision.startswith("/") or re.search(r"[\s*?\[\]\\@]", revision):
        return f"{revision!r} is not a commit hash, branch or tag"
    if not revision.isprintable():
        return "the revision has characters that can't be printed"
    return None
