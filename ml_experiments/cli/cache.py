"""`ml-experiments cache list|show|clear|pull|verify|stats`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ml_experiments.cli.parameters import Duration, Size

_KINDS = click.Choice(["model", "dataset", "space", "kernel", "torch"])


def _options_of_all(command: Any) -> Any:
    """Add the options that choose the cache and the form of the output."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--cache-dir", help="The cache folder with --local; ~/.cache by default."),
        click.option("--local", is_flag=True, help="Use this machine's cache, not the volume."),
    ):
        command = option(command)
    return command


@click.group()
def cache() -> None:
    """See, fill and trim the model cache."""


@cache.command("list")
@click.argument("pattern", required=False)
@click.option("--kind", type=_KINDS, help="Only this kind.")
@click.option(
    "--sort",
    type=click.Choice(["name", "size", "used"]),
    default="name",
    show_default=True,
    help="Order of the rows.",
)
@_options_of_all
def list_(
    pattern: str | None,
    kind: str | None,
    sort: str,
    local: bool,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """List what is cached. PATTERN is a glob such as 'stabilityai/*'."""
    from ml_experiments.cli.cache_report import print_list

    found = _call("list", local, cache_dir, pattern=pattern, kind=kind, sort=sort)
    _print(found, as_json, print_list)


@cache.command()
@click.argument("name")
@_options_of_all
def show(name: str, local: bool, cache_dir: str | None, as_json: bool) -> None:
    """Show the revisions and files of one NAME, or of NAME@REVISION."""
    from ml_experiments.cli.cache_report import print_item

    _print(_call("show", local, cache_dir, name=name), as_json, print_item)


@cache.command()
@click.argument("pattern")
@click.option("--kind", "kinds", type=_KINDS, multiple=True, help="Default: model.")
@click.option("--older-than", type=Duration(), help="Not used for so long, as 30d.")
@click.option("--larger-than", type=Size(), help="Larger than this, as 5GB.")
@click.option("--keep-latest", is_flag=True, help="Keep the latest revision of each.")
@click.option("--dry-run", is_flag=True, help="Show the plan and stop.")
@click.option("--yes", is_flag=True, help="Delete without confirmation.")
@_options_of_all
def clear(
    pattern: str,
    kinds: tuple[str, ...],
    older_than: float | None,
    larger_than: int | None,
    keep_latest: bool,
    dry_run: bool,
    yes: bool,
    local: bool,
    cache_dir: str | None,
    as_json: bool,
) -> int:
    """Delete what PATTERN matches.

    Patterns are such as 'stabilityai/*', 'org/name@abc123', or '*' for all. Shows what would be
    deleted, and waits for a confirmation.
    """
    from ml_experiments.cli.cache_report import print_deletion

    arguments: dict[str, Any] = {
        "pattern": pattern,
        "kinds": kinds or ("model",),
        "older_than_s": older_than,
        "larger_than": larger_than,
        "keep_latest": keep_latest,
    }
    plan = _call("clear", local, cache_dir, **arguments)
    going = [entry["key"] for entry in plan["entries"]]
    going += [leftover["path"] for leftover in plan["leftovers"]]
    if dry_run or not going:
        # with nothing to delete, it is as if it had been
        _print({**plan, "dry_run": dry_run or not yes}, as_json, print_deletion)
        return 0
    if not yes:
        if as_json or not sys.stdin.isatty():
            raise click.UsageError("no terminal to confirm on: give --yes, or --dry-run")
        print_deletion(plan)
        click.confirm("Delete this?", abort=True)
    outcome = _call("clear", local, cache_dir, **arguments, force=True, only=going)
    _print(outcome, as_json, print_deletion)
    return int(bool(outcome["failed"]))


@cache.command()
@click.argument("name")
@click.option("--include", multiple=True, help="A glob of files to take; may be repeated.")
@click.option("--exclude", multiple=True, help="A glob of files to leave out.")
@click.option(
    "--kind",
    type=click.Choice(["model", "dataset", "space"]),
    default="model",
    show_default=True,
    help="What NAME is on the Hub.",
)
@_options_of_all
def pull(
    name: str,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    kind: str,
    local: bool,
    cache_dir: str | None,
    as_json: bool,
) -> None:
    """Download NAME, or NAME@REVISION, before it is needed."""
    from ml_experiments.cli.cache_report import download_bar, print_pull

    repo, at, revision = name.partition("@")
    if at and not revision:
        raise click.UsageError(f"there is no revision after '@' in {name!r}")
    with download_bar() as on_progress:
        outcome = _call(
            "pull",
            local,
            cache_dir,
            name=repo,
            revision=revision or None,
            include=include,
            exclude=exclude,
            kind=kind,
            on_progress=on_progress,
        )
    _print(outcome, as_json, print_pull)


@cache.command()
@click.argument("name", required=False)
@click.option("--repair", is_flag=True, help="Remove what is wrong; a pull fetches it again.")
@_options_of_all
def verify(
    name: str | None, repair: bool, local: bool, cache_dir: str | None, as_json: bool
) -> int:
    """Compare contents with their hashes. NAME may be a glob, and have a @REVISION.

    Exit code 1 when something is wrong and was not repaired.
    """
    from ml_experiments.cli.cache_report import print_verification

    outcome = _call("verify", local, cache_dir, name=name, repair=repair)
    _print(outcome, as_json, print_verification)
    return int(any(not problem["repaired"] for problem in outcome["problems"]))


@cache.command()
@click.option("--runs-dir", help="The folder of runs; that of the settings by default.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(runs_dir: str | None, as_json: bool) -> None:
    """Say which downloads the cache saved, from the manifests of runs."""
    from ml_experiments import settings
    from ml_experiments.cli.cache_report import print_stats
    from ml_experiments.runs.reports.cache_stats import read_stats

    folder = settings.runs_dir() if runs_dir is None else runs_dir
    _print(read_stats(folder).to_dict(), as_json, print_stats)


def _call(operation: str, local: bool, cache_dir: str | None, **arguments: Any) -> dict[str, Any]:
    """Do it to the cache volume on Modal, or to this machine's cache; the answer is JSON."""
    if local:
        from ml_experiments.cache.layout import this_machine
        from ml_experiments.cache.operations import OPERATIONS

        folder = this_machine() if cache_dir is None else cache_dir
        return OPERATIONS[operation](cache_dir=folder, **arguments)
    if cache_dir is not None:
        raise click.UsageError("--cache-dir names a folder of this machine: add --local")
    from ml_experiments.backends.modal.cache import call_cache_operation

    on_progress = arguments.pop("on_progress", None)
    return call_cache_operation(operation, arguments, on_progress)


def _print(data: dict[str, Any], as_json: bool, print_tables: Any) -> None:
    if as_json:
        click.echo(json.dumps(data, allow_nan=False))
    else:
        print_tables(data)
