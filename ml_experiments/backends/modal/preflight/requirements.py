"""Requirements such as `timm>=1.0`, as users write them, and whether a container obeys them."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

from packaging.requirements import InvalidRequirement, Requirement

from ml_experiments.errors import PreflightError

# what `; sys_platform == "linux"` and the like are compared with; a test compares it with the image
CONTAINER_MARKERS = {
    "extra": "",
    "implementation_name": "cpython",
    "implementation_version": "3.11.12",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": "3.11.12",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def parse_requirement(text: str) -> Requirement:
    """Return a requirement of PEP 508, taken apart.

    Raises:
        PreflightError: If it is none, or names a file of this machine.
    """
    try:
        requirement = Requirement(text)
    except InvalidRequirement as e:
        raise PreflightError(
            f"{text!r} is not a requirement such as timm, timm>=1.0 or "
            f"'name @ https://…': {str(e).splitlines()[0]}"
        ) from e
    if requirement.url is not None and urlsplit(requirement.url).scheme in ("", "file"):
        raise PreflightError(
            f"{text!r} names a file or folder of this machine, which the image can't be built "
            "from; your own modules are sent along without being named"
        )
    return requirement


def is_for_container(requirement: Requirement) -> bool:
    """Return whether the requirement's marker, if it has one, is true in a container."""
    return requirement.marker is None or requirement.marker.evaluate(CONTAINER_MARKERS)


def read_requirements(file: Path) -> tuple[str, ...]:
    """Return the requirements of a requirements file, as they stand in it.

    Raises:
        PreflightError: If the file isn't readable, or has lines that are not requirements; it
            names all of them.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise PreflightError(f"requirements file {str(file)!r} is not readable: {e}") from e
    requirements, problems = [], []
    for number, line in enumerate(lines, start=1):
        text = re.split(r"(?:^|\s)#", line)[0].strip()
        if not text:
            continue
        try:
            parse_requirement(text)
        except PreflightError as e:
            problems.append(f"{file}:{number}: {_advice(text) or e}")
        requirements.append(text)
    if problems:
        raise PreflightError("\n".join(problems))
    return tuple(requirements)


def _advice(line: str) -> str | None:
    """Return what to do about a line that pip takes and an image of packages does not."""
    if re.match(r"(-r|-c|--requirement|--constraint)\b", line):
        return f"{line!r} names another file, which is not sent along; copy its lines into this one"
    if line.startswith(("-e", "--editable", ".", "/")):
        return (
            f"{line!r} is a folder or file of this machine; your own modules are sent along "
            "without being named, so leave the line out"
        )
    if line.startswith("-"):
        return (
            f"{line!r} is an option, and options are not passed on; a package that is not on "
            "PyPI is written as 'name @ https://…'"
        )
    if line.endswith("\\") or " --" in line:
        return f"{line!r} goes on or has options; write one requirement such as timm>=1.0 a line"
    return None
