"""Which of the things in a cache a deletion is about: by pattern, kind, age and size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from ml_experiments.cache.delete.in_use import is_recent
from ml_experiments.cache.items import CachedItem, CachedRevision, Leftover
from ml_experiments.cache.layout import KINDS, Kind
from ml_experiments.cache.patterns import NamePattern
from ml_experiments.errors import CacheError


@dataclass(frozen=True)
class Selection:
    """What to delete, or with `why`, what to keep; `revisions` None means all of the item."""

    item: CachedItem
    revisions: tuple[CachedRevision, ...] | None
    why: str | None = None


@dataclass(frozen=True)
class Filters:
    """What a deletion is limited to; a thing goes only if every filter lets it."""

    pattern: NamePattern | None
    kinds: tuple[Kind, ...]
    older_than: timedelta | None
    larger_than: int | None
    keep_latest: bool

    def __post_init__(self) -> None:
        """Check the values that a user may have given.

        Raises:
            CacheError: If a kind is unknown, or an age or size negative.
        """
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise CacheError(
                f"{unknown or 'nothing'} is not a kind of cached thing; known: {', '.join(KINDS)}"
            )
        if self.older_than is not None and self.older_than < timedelta(0):
            raise CacheError(f"older_than is {self.older_than}; it can't be negative")
        if self.larger_than is not None and self.larger_than < 0:
            raise CacheError(f"larger_than is {self.larger_than} bytes; it can't be negative")

    def matches(self, name: str) -> bool:
        """Return whether the pattern means a name."""
        return self.pattern is None or self.pattern.matches(name)

    def select(self, item: CachedItem, now: float) -> Iterator[Selection]:
        """Yield what goes of an item, and what stays and why."""
        if not self.matches(item.name):
            return
        if item.kind not in self.kinds:
            yield Selection(item, None, f"is a {item.kind}; clearing it takes kind {item.kind}")
        elif self.larger_than is not None and item.bytes <= self.larger_than:
            yield Selection(item, None, "is not larger than the given size")
        elif item.revisions:
            yield from self._select_revisions(item, now)
        elif self.pattern is not None and self.pattern.revision is not None:
            yield Selection(item, None, f"has no revisions in the {item.store} cache")
        elif self.keep_latest and not item.is_repo:
            yield Selection(item, None, "is its only revision")
        elif (why := self._too_young(item.last_used, now)) is not None:
            yield Selection(item, None, why)
        elif item.is_repo and is_recent(item.last_used, now):
            yield Selection(item, None, "has no revision yet; its download may be going on")
        else:
            yield Selection(item, None)

    def selects_leftover(self, leftover: Leftover, now: float) -> bool:
        """Return whether the filters are for a leftover too."""
        return (
            leftover.kind in self.kinds
            and self.matches(leftover.name)
            and (self.pattern is None or self.pattern.revision is None)
            and (self.larger_than is None or leftover.bytes > self.larger_than)
            and self._too_young(leftover.modified, now) is None
        )

    def _select_revisions(self, item: CachedItem, now: float) -> Iterator[Selection]:
        chosen = []
        meant = self._meant_revisions(item)
        if meant is None:
            yield Selection(item, None, "has several revisions that begin like that; give more")
            return
        latest = item.latest_revision() if self.keep_latest else None
        for revision in meant:
            why = self._too_young(revision.last_used, now)
            if revision == latest:
                why = "is the latest revision"
            if why is None:
                chosen.append(revision)
            else:
                yield Selection(item, (revision,), why)
        if len(chosen) == len(item.revisions):
            yield Selection(item, None)
        elif chosen:
            yield Selection(item, tuple(chosen))

    def _meant_revisions(self, item: CachedItem) -> list[CachedRevision] | None:
        if self.pattern is None or self.pattern.revision is None:
            return list(item.revisions)
        meant = [r for r in item.revisions if self.pattern.matches_revision(r.commit, r.refs)]
        return meant if len(meant) < 2 else None

    def _too_young(self, last_used: float, now: float) -> str | None:
        if self.older_than is None:
            return None
        age_s = max(now - last_used, 0.0)  # no timedelta: a file's time may be any number
        if age_s > self.older_than.total_seconds():
            return None
        return f"was used {_in_words(int(age_s))} ago"


def _in_words(seconds: int) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = seconds // length
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than a minute"
