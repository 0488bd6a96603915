"""How the commands of `ml-experiments cache` print what they found or did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from ml_experiments.cli.table import Column, print_table
from ml_experiments.runner.display.printable import printable

if TYPE_CHECKING:
    from ml_experiments.cache.pull.progress import PullProgress

_SHORT_COMMIT = 8
_NAME = Column("name", is_cut=True)
_KIND = Column("kind")
_SIZE = Column("size", is_right=True)
_LAST_USE = Column("last use")


def print_list(found: dict[str, Any]) -> None:
    """Print what is cached, with totals."""
    if found["items"]:
        rows = []
        for item in found["items"]:
            revisions = str(len(item["revisions"])) if item["revisions"] else ""
            size, used = decimal(item["bytes"]), _ago(item["last_used"])
            rows.append((item["name"], _kind_of(item), size, revisions, used))
        print_table((_NAME, _KIND, _SIZE, Column("revisions", is_right=True), _LAST_USE), rows)
    else:
        hint = printable(found["hint"])
        click.echo(f"nothing matches{hint}" if found["bytes"] else "the cache is empty")
    for item in found["items"]:
        if item["damage"]:
            first, *more = item["damage"]
            rest = f", and {len(more)} more" if more else ""
            what = printable(f"{item['name']}: {first['path']} {first['what']}{rest}")
            click.echo(f"damaged: {what}; `verify --repair` removes it")
    partial = [lo["bytes"] for lo in found["leftovers"] if lo["reason"] == "incomplete"]
    if partial:
        click.echo(f"interrupted downloads: {len(partial)}, {decimal(sum(partial))}")
    for entry in found["unrecognised"]:
        click.echo(f"not touched: {printable(entry['path'])} {printable(entry['why'])}")
    total = f"{decimal(found['bytes'])} in {printable(found['cache_dir'])}"
    if found["disk_total"] is None:
        total += ", which is not there"
    else:
        total += f"; {decimal(found['disk_free'])} of {decimal(found['disk_total'])} free"
    click.echo(total)


def print_item(shown: dict[str, Any]) -> None:
    """Print revisions and files of what has one name."""
    for item in shown["items"]:
        click.echo(
            f"{printable(item['name'])}  {item['kind']}, {decimal(item['bytes'])}, "
            f"used {_ago(item['last_used'])}, in {item['store']}"
        )
        for flaw in item["damage"]:
            click.echo(f"damaged: {printable(flaw['path'])} {flaw['what']}")
        for revision in item["revisions"]:
            refs = printable(", ".join(revision["refs"])) or "no branch or tag"
            commit = printable(revision["commit"])
            click.echo(f"{commit}  {refs}, {decimal(revision['bytes'])}")
            _print_files([f for f in item["contents"] if _is_of(f, revision)])
        if not item["revisions"]:
            _print_files(item["contents"])


def print_deletion(outcome: dict[str, Any]) -> None:
    """Print what would go or went, what stays and why."""
    if outcome["entries"]:
        rows = []
        for entry in outcome["entries"]:
            revisions = ", ".join(commit[:_SHORT_COMMIT] for commit in entry["revisions"])
            name = f"{entry['name']}@{revisions}" if revisions else entry["name"]
            used = _ago(entry["last_used"])
            rows.append((name, _kind_of(entry), decimal(entry["bytes"]), used))
        print_table((_NAME, _KIND, Column("frees", is_right=True), _LAST_USE), rows)
    partial: dict[str, int] = {}
    for leftover in outcome["leftovers"]:
        if leftover["reason"] == "incomplete":
            partial[leftover["name"]] = partial.get(leftover["name"], 0) + leftover["bytes"]
    for name, size in partial.items():
        click.echo(f"interrupted download of {printable(name)}: {decimal(size)}")
    locks = sum(leftover["reason"] == "lock" for leftover in outcome["leftovers"])
    if locks:
        click.echo(f"stale locks: {locks}")
    for kept in outcome["kept"]:
        name, at, commit = kept["name"].partition("@")
        name = printable(f"{name}{at}{commit[:_SHORT_COMMIT]}")
        click.echo(f"kept: {name} ({decimal(kept['bytes'])}) {printable(kept['why'])}")
    for failed in outcome["failed"]:
        click.secho(f"failed: {printable(failed['name'])} {printable(failed['why'])}", fg="red")
    for note in outcome["notes"]:
        click.echo(printable(note))
    what = "to delete, would free" if outcome["dry_run"] else "deleted, freed"
    click.echo(f"{outcome['deleted']} {what} {decimal(outcome['freed_bytes'])}")


def print_pull(outcome: dict[str, Any]) -> None:
    """Print what a pull downloaded."""
    what = f"{outcome['name']}@{outcome['revision'][:_SHORT_COMMIT]}"
    size = f"{decimal(outcome['bytes'])} in {outcome['files']} file(s)"
    if outcome["downloaded_files"]:
        size += f"; downloaded {decimal(outcome['downloaded_bytes'])}"
    else:
        size += "; all of it was there"
    click.echo(f"{printable(what)}: {size}")
    click.echo(printable(outcome["path"]))


def print_verification(outcome: dict[str, Any]) -> None:
    """Print the problems that a verification found, and its totals."""
    for problem in outcome["problems"]:
        click.secho(f"{printable(problem['path'])} {printable(_trouble(problem))}", fg="red")
    checked = f"{_files(outcome['checked'])}, {decimal(outcome['checked_bytes'])} checked"
    wrong = "all as they should be" if outcome["checked"] else "there is nothing to check"
    if outcome["problems"]:
        wrong = f"{len(outcome['problems'])} wrong"
    if removed := sum(problem["repaired"] for problem in outcome["problems"]):
        wrong += f", {removed} removed"
    click.echo(f"{checked}; {wrong}")
    if outcome["unchecked"]:
        why = "without a hash to compare with, or not readable"
        click.echo(f"{_files(len(outcome['unchecked']))} {why}")


def print_stats(stats: dict[str, Any]) -> None:
    """Print which downloads the cache saved."""
    if stats["revisions"]:
        rows = []
        for row in stats["revisions"]:
            counts = (str(row["hits"]), str(row["downloads"]), decimal(row["bytes_saved"]))
            rows.append((row["repo_id"], row["revision"][:_SHORT_COMMIT], *counts))
        counts_columns = (Column(name, is_right=True) for name in ("hits", "downloads", "saved"))
        print_table((_NAME, Column("revision"), *counts_columns), rows)
    runs, hits, downloads = (
        f"{stats[name + 's']} {name}{'' if stats[name + 's'] == 1 else 's'}"
        for name in ("run", "hit", "download")
    )
    click.echo(
        f"{runs}: {hits} saved {decimal(stats['bytes_saved'])}, "
        f"{downloads} took {decimal(stats['bytes_downloaded'])}"
    )
    if stats["unreadable"]:
        unreadable = printable(", ".join(stats["unreadable"]))
        click.echo(f"manifests that can't be read: {unreadable}")


@contextmanager
def download_bar() -> Iterator[Callable[[PullProgress], None]]:
    """Show a progress bar on stderr while bytes arrive."""
    from rich.console import Console  # slow to import, and the other commands need neither
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    quiet = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        task = progress.add_task("downloading", total=None)

        def update(state: PullProgress) -> None:
            progress.update(task, completed=state.done_bytes, total=state.total_bytes)

        yield update


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"


def _kind_of(item: dict[str, Any]) -> str:
    """Return the kind, and the part of the cache where one would not look for it."""
    kind, store = str(item["kind"]), str(item["store"])
    return f"{kind} in {store}" if store in ("transformers", "datasets") else kind


def _print_files(files: list[dict[str, Any]]) -> None:
    rows = [(decimal(f["bytes"]), f["path"], f.get("blob", "")[:_SHORT_COMMIT]) for f in files]
    print_table((_SIZE, Column("file", is_cut=True), Column("blob")), rows)


def _is_of(file: dict[str, Any], revision: dict[str, Any]) -> bool:
    return bool(file["revision"] == revision["commit"])


def _trouble(problem: dict[str, Any]) -> str:
    trouble = str(problem["what"])
    if problem["repaired"]:
        return f"{trouble}: removed, pull again to fetch it"
    if problem["why_not_repaired"]:
        return f"{trouble}: not removed, {problem['why_not_repaired']}"
    return f"{trouble}: --repair removes it"


def _ago(moment: float) -> str:
    seconds = max(time.time() - moment, 0)
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{int(seconds // length)} {unit} ago"
    return "just now"
