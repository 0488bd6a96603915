"""Names of picture files, from a template; safe for every file system."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from typing import Any

from ml_experiments.errors import ConfigError, suggest

# what a template may name
FIELDS = (
    "index",  # of the picture in the run, with leading zeros
    "number",  # of the picture among those of its prompt
    "prompt",
    "negative_prompt",
    "seed",
    "model",
    "scheduler",
    "num_inference_steps",
    "guidance_scale",
    "true_cfg_scale",
    "width",
    "height",
)
_MAX_VALUE, _MAX_STEM_BYTES = 48, 200
# the last ones are invisible: controls, and what turns the direction of writing
_UNSAFE = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]')
# device names of Windows, whatever their extension
_RESERVED = re.compile(
    r"(con(in\$|out\$)?|prn|aux|nul|(com|lpt)[\d¹²³]|contact-sheet)", re.IGNORECASE
)


def check_template(template: str) -> None:
    """Check that a template names known fields only.

    Raises:
        ValueError: If it doesn't; it names the fields that there are.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as e:
        raise ValueError(f"file_name: {template!r} is not a template: {e}") from e
    for literal, name, spec, conversion in parts:
        if found := _UNSAFE.search(literal):
            raise ValueError(f"file_name: {found[0]!a} can't stand in the name of a file")
        if name is None:
            continue
        if name not in FIELDS:
            raise ValueError(
                f"file_name: there is no field {{{name}}}{suggest(name, FIELDS)}; "
                f"those are: {', '.join(FIELDS)}"
            )
        if spec or conversion:
            raise ValueError(f"file_name: write {{{name}}} without a format")
    if not any(name for _, name, _, _ in parts):
        raise ValueError("file_name: every picture would have the same name; add {index}")


def file_names(
    template: str, pictures: Sequence[Mapping[str, Any]], extension: str
) -> Sequence[str]:
    """Return the name of each picture's file.

    Raises:
        ConfigError: If two would be the same, where a file system ignores case.
    """
    digits = max(3, len(str(len(pictures) - 1)))
    names: list[str] = []
    places: dict[str, int] = {}
    for place, values in enumerate(pictures):
        texts = {name: _slug(values.get(name)) for name in FIELDS}
        texts["index"] = f"{values['index']:0{digits}d}"
        stem = template.format(**texts).encode()[:_MAX_STEM_BYTES].decode(errors="ignore")
        stem = stem.strip(" .-") or texts["index"]
        if _RESERVED.fullmatch(stem.partition(".")[0]):
            stem = f"_{stem}"
        name = f"{stem}.{extension}"
        first = places.setdefault(name.casefold(), place)
        if first != place:
            is_cut = len(stem.encode()) > _MAX_STEM_BYTES - 4
            raise ConfigError(
                f"file_name={template!r}: pictures {first} and {place} would both be {name}; "
                f"{'shorten it' if is_cut else 'add {index}'}"
            )
        names.append(name)
    return names


def _slug(value: Any) -> str:
    text = "" if value is None else str(value)
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:_MAX_VALUE].rstrip("-.")
