"""Requirements that can't be met, next to the image's locked packages or to each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import InvalidVersion, Version

from ml_experiments.backends.modal.preflight.requirements import is_for_container


def find_conflicts(requirements: Sequence[Requirement], lock: Mapping[str, str]) -> tuple[str, ...]:
    """Return what can certainly not be installed, one message each.

    Args:
        requirements: What is to be added to the image.
        lock: The version of each package that the image has, and keeps.
    """
    asked: defaultdict[str, list[Requirement]] = defaultdict(list)
    for requirement in requirements:
        if is_for_container(requirement):
            asked[canonicalize_name(requirement.name)].append(requirement)
    problems = []
    for name, group in asked.items():
        if name in lock:
            problems += [_not_locked(r, lock[name]) for r in group if not _allows(r, lock[name])]
        elif _contradict(group):
            texts = " and ".join(dict.fromkeys(str(requirement) for requirement in group))
            problems.append(f"{texts}: no version of {name} is all of that; keep one of them")
    return tuple(problems)


def _not_locked(requirement: Requirement, version: str) -> str:
    name = requirement.name
    return (
        f"{requirement}: the image has {name} {version}, and its packages keep their versions; "
        f"leave it out, or ask for a version of {name} that includes {version}"
    )


def _allows(requirement: Requirement, version: str) -> bool:
    if requirement.url is None:
        return requirement.specifier.contains(version, prereleases=True)
    found = _version_in(requirement.url)
    return found is None or SpecifierSet(f"=={version}").contains(found, prereleases=True)


def _version_in(url: str) -> Version | None:
    """Return the version that an archive's name says; None for a repository and the like."""
    file = unquote(urlsplit(url).path).rpartition("/")[2]
    try:
        if file.endswith(".whl"):
            return parse_wheel_filename(file)[1]
        return parse_sdist_filename(file)[1]
    except (InvalidWheelFilename, InvalidSdistFilename, InvalidVersion):
        return None


def _contradict(requirements: Sequence[Requirement]) -> bool:
    """Return whether it's certain that no version meets all requirements of one package."""
    urls = {requirement.url for requirement in requirements if requirement.url}
    if len(urls) > 1:
        return True
    specifiers = SpecifierSet()
    for requirement in requirements:
        specifiers &= requirement.specifier
    candidates = [_version_in(url) for url in urls] or list(_candidates(specifiers))
    return None not in candidates and not any(
        specifiers.contains(version, prereleases=True) for version in candidates if version
    )


def _candidates(specifiers: SpecifierSet) -> Iterator[Version | None]:
    """Yield versions of which one meets all specifiers, if any version does; None if unsure.

    What each specifier allows are ranges, and so is what all of them allow. A range starts at
    0, at a version that is named, just above it, or where its prefix ends, as with `!=1.0.*`.
    """
    exact = [s for s in specifiers if s.operator in ("==", "===") and not s.version.endswith(".*")]
    for specifier in exact or specifiers:
        try:
            version = Version(specifier.version.removesuffix(".*"))
        except InvalidVersion:  # `===` takes any text
            yield None
            continue
        yield version
        if not exact:
            if str(version) != version.base_version or version.epoch:
                yield None  # what lies just above a pre-release or a local version is intricate
            *front, last = version.release
            for release in (version.release, (*front, last + 1)):
                yield Version(".".join(map(str, release)))
                yield Version(".".join(map(str, (*release, 0, 0, 0, 1))))
    yield Version("0")
