"""What a notebook shows of a run's result."""

from __future__ import annotations

import base64
import contextlib
import html
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ml_experiments.errors import RunFolderError
from ml_experiments.runs.records import read_json_object
from ml_experiments.serialization.loading import locate

if TYPE_CHECKING:
    from ml_experiments.runs.result import RunResult

_MAX_ROWS = 20
_MAX_LENGTH = 300
_MAX_PICTURES = 4
_MAX_PICTURE_BYTES = 2_000_000
# an SVG may hold a script
_PICTURE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_COLOURS = {"success": "#2e7d32", "error": "#c62828", "cancelled": "#b26a00"}
# readable on a dark page and on a light one; all other colours are those of the notebook's theme
_CHIP = "color:#fff;padding:1px 7px;border-radius:4px;margin-right:4px"
_CELL = (
    "text-align:left;vertical-align:top;padding:2px 12px 2px 0;border:none;background:none;"
    "overflow-wrap:anywhere"
)
_TABLE = "border:none;border-collapse:collapse;margin:4px 0;color:inherit;font-size:inherit"
_HEADING = f"{_CELL};font-weight:600;white-space:nowrap"


def result_html(result: RunResult) -> str:
    """Return a table of status, config, results and error, and the first pictures."""
    colour = _COLOURS.get(str(result.status), "#1565c0")
    seconds = result.timings.get("total_s")
    took = "" if seconds is None else f" in {seconds:.2f} s"
    if result.is_reused:
        took = " reused, for $0"
    experiment, run_id = html.escape(result.experiment_class), html.escape(result.run_id)
    title = (
        f'<b style="background:{colour};{_CHIP}">{html.escape(str(result.status))}</b>'
        f"{took} · {experiment} · <code>{run_id}</code>"
    )
    parts = [f"<div>{title}</div>", _table(_rows(result))]
    if result.error is not None and result.error.traceback:
        trace = html.escape(result.error.traceback.rstrip())
        parts.append(f'<pre style="font-size:85%;overflow-x:auto">{trace}</pre>')
    pictures = "".join(_pictures(result))
    if pictures:
        parts.append(f'<div style="display:flex;flex-wrap:wrap;gap:8px">{pictures}</div>')
    return f'<div style="font-size:90%">{"".join(parts)}</div>'


def _rows(result: RunResult) -> Iterator[tuple[str, Any]]:
    if result.error is not None:
        yield "error", f"{result.error.kind}: {result.error.type}: {result.error.message}"
        if result.error.hint:
            yield "hint", result.error.hint
    config = None
    if result.run_dir is not None:
        with contextlib.suppress(RunFolderError):
            config = read_json_object(result.run_dir / "spec.json").get("config")
    for heading, group in (("config", config), ("results", result.results_json)):
        if isinstance(group, dict) and "$type" not in group:
            for count, (name, value) in enumerate(group.items()):
                if count == _MAX_ROWS:
                    yield f"{heading}.…", f"{len(group) - _MAX_ROWS} more"
                    break
                yield f"{heading}.{name}", value
        elif group is not None:
            yield heading, group
    for name, usd in result.cost.items():
        yield f"cost, {name.removesuffix('_usd').replace('_', ' ')}", f"${usd:.4f}"
    if result.artifacts:
        count, size = len(result.artifacts), sum(a.size_bytes for a in result.artifacts)
        shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
        yield "artifacts", f"{count} file{'s' if count != 1 else ''}, {shown}"
    if result.run_dir is not None:
        yield "run folder", str(result.run_dir)


def _table(rows: Iterator[tuple[str, Any]]) -> str:
    cells = "".join(
        f'<tr style="background:none"><th style="{_HEADING}">{html.escape(name)}</th>'
        f'<td style="{_CELL}">{html.escape(_shown(value))}</td></tr>'
        for name, value in rows
    )
    return f'<table style="{_TABLE}">{cells}</table>'


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and isinstance(value.get("$type"), str):
        value = value.get("path", value.get("value", value["$type"]))
    shown = str(value)
    return shown if len(shown) <= _MAX_LENGTH else f"{shown[:_MAX_LENGTH]}…"


def _pictures(result: RunResult) -> Iterator[str]:
    count = 0
    for artifact in result.artifacts:
        is_small = artifact.size_bytes <= _MAX_PICTURE_BYTES
        if artifact.media_type not in _PICTURE_TYPES or not is_small:
            continue
        try:
            file = locate({"path": artifact.path}, result.run_dir)
            content = file.read_bytes() if file.is_file() else b""
        except (RunFolderError, OSError):
            continue
        if not content or len(content) > _MAX_PICTURE_BYTES:
            continue
        encoded = base64.b64encode(content).decode("ascii")
        name = html.escape(artifact.path, quote=True)
        yield (
            f'<img src="data:{artifact.media_type};base64,{encoded}" alt="{name}" title="{name}" '
            'style="max-width:256px;max-height:256px;min-width:64px">'
        )
        count += 1
        if count == _MAX_PICTURES:
            return
