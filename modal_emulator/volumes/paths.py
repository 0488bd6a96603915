"""Paths inside a volume, which can't lead out of its folder."""

from __future__ import annotations

from pathlib import Path

# the kernel's limit for following symbolic links
MAX_LINKS = 40


class VolumePathError(ValueError):
    """Raised when a path is invalid or leads out of the volume."""


def split_path(path: str) -> tuple[str, ...]:
    """Return the parts of a volume path; `/a/b` and `a/b` are the same.

    Raises:
        VolumePathError: If the path contains `..` or a null character.
    """
    names = tuple(name for name in path.split("/") if name not in ("", "."))
    if ".." in names:
        raise VolumePathError(
            f"'{path}' contains '..'; give a path from the top of the volume, such as /folder/file"
        )
    if "\0" in path:
        raise VolumePathError(f"{path!r} contains a null character, which no file name can")
    return names


def resolve(root: Path, path: str, *, follow_last: bool = True) -> Path:
    """Return the file at a path of a volume, following links inside the volume.

    Args:
        root: The folder with the content of the volume.
        path: The path as the user wrote it.
        follow_last: Follow the last part of the path as well if it is a link.

    Raises:
        VolumePathError: If the path is invalid or leads out of the volume, perhaps by a link.
    """
    pending = list(reversed(split_path(path)))
    names: list[str] = []
    links = 0
    while pending:
        name = pending.pop()
        if name == "..":
            if not names:
                raise VolumePathError(f"'{path}' leads out of the volume through a link")
            names.pop()
            continue
        here = root.joinpath(*names, name)
        if not here.is_symlink() or not (pending or follow_last):
            names.append(name)
            continue
        target = str(here.readlink())
        links += 1
        if links > MAX_LINKS:
            raise VolumePathError(f"'{path}' goes through more than {MAX_LINKS} links")
        if target.startswith("/"):
            raise VolumePathError(
                f"'{path}' goes through a link to '{target}', which is outside of the volume; "
                "links inside a volume have to be relative"
            )
        pending.extend(reversed([each for each in target.split("/") if each not in ("", ".")]))
    return root.joinpath(*names)
