"""Prompts from a file: TXT with a prompt a line, CSV and JSONL with settings for each prompt."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pydantic

from ml_experiments.errors import suggest
from ml_experiments.tasks.text_to_image.named_paths import absolute_path

_MAX_PROBLEMS = 10
_SIZE = re.compile(r"(\d+)\s*[xX×*]\s*(\d+)")  # noqa: RUF001 - as people write it


def read_rows(file: Path, row_type: type[pydantic.BaseModel]) -> list[dict[str, Any]]:
    """Return the fields of each row, those that are empty left out.

    A column `size`, such as `512x768`, stands for width and height.

    Args:
        file: A .txt, .csv, .tsv or .jsonl file in UTF-8.
        row_type: Checks a row.

    Raises:
        ValueError: If it can't be read, or rows are not valid; it names their lines.
    """
    readers = {".txt": _read_txt, ".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise ValueError(f"prompts_file: {file} must be a .txt, .csv, .tsv or .jsonl file")
    try:
        text = absolute_path(str(file)).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else f"save it as UTF-8, which it isn't: {e}"
        raise ValueError(f"prompts_file: {file} can't be read: {reason}") from e
    rows, problems, lines = [], [], dict[str, int]()
    known = [*row_type.model_fields, "size"]
    for line, fields in reader(text, known):
        try:
            row = _row(fields, row_type, known)
        except ValueError as e:
            problems.append(f"{file.name}, line {line}: {e}")
            continue
        drawn = {name: value for name, value in row.items() if name != "num_images"}
        first = lines.setdefault(json.dumps(drawn, sort_keys=True), line)
        if first != line:
            problems.append(
                f"{file.name}, line {line}: would draw the same as line {first}; for more "
                "pictures of a prompt, raise its num_images"
            )
        rows.append(row)
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        shown = problems[:_MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
        raise ValueError("prompts_file: " + "; ".join(shown))
    if not rows:
        raise ValueError(f"prompts_file: {file} has no prompt")
    return rows


def _row(
    fields: Mapping[str, Any] | str, row_type: type[pydantic.BaseModel], known: Sequence[str]
) -> dict[str, Any]:
    """Return the fields of a row, checked.

    Raises:
        ValueError: If they are not valid, or `fields` is a message that says so.
    """
    if isinstance(fields, str):
        raise ValueError(fields)
    row = {k: v for k, v in fields.items() if v is not None and v != ""}
    if isinstance(size := row.pop("size", None), str):
        if not (found := _SIZE.fullmatch(size.strip())):
            raise ValueError(f"size: {size!r} is not WIDTHxHEIGHT, such as 512x768")
        if "width" in row or "height" in row:
            raise ValueError("size: give either size, or width and height")
        row |= {"width": int(found[1]), "height": int(found[2])}
    elif size is not None:
        raise ValueError(f"size: {size!r} is not WIDTHxHEIGHT, such as 512x768")
    for name, value in row.items():
        if name not in known:
            raise ValueError(_no_field(name, known))
        if isinstance(value, bool):
            raise ValueError(f"{name}: {json.dumps(value)} is no value for it")
    try:
        checked = row_type.model_validate(row)
        checked.model_dump_json()  # raises for half a character
        return checked.model_dump(exclude_none=True)
    except pydantic.ValidationError as e:
        problem = e.errors(include_url=False)[0]
        name = ".".join(str(part) for part in problem["loc"])
        given = "" if problem["type"] == "missing" else f" (given: {problem['input']!r})"
        message = problem["msg"].replace("Input should be", "it must be")
        raise ValueError(f"{name}: {message}{given}") from e


def _no_field(name: str, known: Sequence[str]) -> str:
    return f"{name!r} is no field of a prompt{suggest(name, known)}; those are: {', '.join(known)}"


def _read_txt(text: str, _known: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for number, line in enumerate(StringIO(text), 1):
        if line.strip():
            yield number, {"prompt": line.strip()}


def _read_csv(text: str, known: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    # spreadsheets write semicolons where a comma is the decimal point
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    lines = csv.reader(
        StringIO(text, newline=""), strict=True, skipinitialspace=True, delimiter=separator
    )
    header: list[str] = []
    line = 1
    while True:
        try:
            cells = next(lines, None)
        except csv.Error as e:
            yield lines.line_num, f"it is not CSV: {e}"
            return
        if cells is None:
            return
        while cells and not cells[-1].strip():  # as spreadsheets add
            cells.pop()
        if cells and not header:
            header = [name.strip().lower() for name in cells]
            if problem := _problem_of(header, known):
                yield line, f"the first line must name the columns; {problem}"
                return
        elif len(cells) > len(header):
            yield (
                line,
                f"{len(cells)} values for {len(header)} columns; quote those with {separator!r}",
            )
        elif cells:
            row = dict(zip(header, cells, strict=False))
            if separator == ";":
                row |= {k: v.replace(",", ".") for k, v in row.items() if k.endswith("_scale")}
            yield line, row
        line = lines.line_num + 1


def _problem_of(header: Sequence[str], known: Sequence[str]) -> str | None:
    """Return what is wrong with the names of columns."""
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        return f"{', '.join(map(repr, repeated))} stands there twice"
    if "" in header:
        return f"column {header.index('') + 1} has no name: remove the column, or name it"
    if "prompt" not in header:
        return f"there is no column 'prompt', only {', '.join(map(repr, header))}"
    return next((_no_field(name, known) for name in header if name not in known), None)


def _read_jsonl(text: str, _known: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    for number, line in enumerate(StringIO(text), 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line, object_pairs_hook=_unique_fields)
        except ValueError as e:
            yield number, f"it is not JSON: {e}"
            continue
        if isinstance(fields, str):
            fields = {"prompt": fields}
        is_object = isinstance(fields, dict)
        yield number, fields if is_object else f"it is no object: {line[:40].strip()}"


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a field stands there twice")
    return fields
