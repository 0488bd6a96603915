"""`ml-experiments runs sync|pull`, and what lists ask Modal: runs that other clients left there."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ml_experiments.backends.modal.fetching import Fetched
    from ml_experiments.runs.index.rows import RunRow

_ASKED_EVERY_S = 5.0


@click.command()
@click.option("--dry-run", is_flag=True, help="Print what would come here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sync(dry_run: bool, as_json: bool) -> int:
    """Bring runs here that are on Modal: those of other machines, and those that have ended.

    Sweeps that are controlled on Modal come with their runs.
    """
    from ml_experiments.backends.modal.errors import LIST_INSTEAD, require_access
    from ml_experiments.backends.modal.remote_runs import bring_here, runs_there, statuses_there
    from ml_experiments.cli.runs.finding import for_each
    from ml_experiments.runner.detached.remote_sweeps import bring_sweeps_here
    from ml_experiments.settings import runs_dir

    require_access(LIST_INSTEAD)
    place = runs_dir().expanduser().resolve()
    there = runs_there()
    new = {run_id for run_id in there if not (place / run_id).exists()}
    # first, for their controllers know more of their runs: what they cost
    sweeps = [] if dry_run else [folder.path.name for folder in bring_sweeps_here(place)]
    ended = statuses_there()
    wanted = sorted(
        run_id
        for run_id in there
        if (run_id in new and _lacks_files(place / run_id))
        or (run_id in ended and _waits_for_result(place / run_id))
    )

    def bring(run_id: str) -> int:
        _note_problems(run_id, bring_here(run_id, place))
        if not as_json:
            click.echo(f"{run_id}  {ended.get(run_id, 'running')}")
        return 0

    code = for_each(() if dry_run else wanted, bring)
    if as_json:
        record = {"runs": wanted, "sweeps": sweeps, "brought": not dry_run}
        click.echo(json.dumps(record))
    elif dry_run:
        for run_id in wanted:
            click.echo(run_id)
    if not as_json and not wanted:
        click.echo("everything that is on Modal is here")
    return code


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
def pull(runs: tuple[str, ...]) -> int:
    """Bring the files of runs here from Modal, artifacts checked by their hashes.

    What is here as the run left it is left out, so a pull that was broken off goes on. A file that
    is damaged here is fetched again. The exit code is 1 if one is damaged on Modal too.
    """
    from ml_experiments.backends.modal.errors import LIST_INSTEAD, require_access
    from ml_experiments.backends.modal.remote_runs import bring_here
    from ml_experiments.cli.runs.finding import for_each
    from ml_experiments.settings import runs_dir

    place = runs_dir().expanduser().resolve()

    def pull_one(run_id: str) -> int:
        _refuse_run_of_elsewhere(place / run_id)
        require_access(LIST_INSTEAD)
        code = _note_problems(run_id, bring_here(run_id, place))
        click.echo(str(place / run_id))
        return code

    return for_each([_id_of(run) for run in runs], pull_one)


def with_remote_statuses(rows: Sequence[RunRow]) -> list[RunRow]:
    """Return rows with the status that runs on Modal have there, where no client sees to them.

    Modal is asked once for all of them, and at most every five seconds.
    """
    from ml_experiments.runner.following import has_client
    from ml_experiments.runs.folder import RunFolder
    from ml_experiments.settings import modal_credentials_source, runs_dir

    place = runs_dir().expanduser().resolve()
    waiting = [
        row.run_id
        for row in rows
        if row.backend == "modal"
        and row.status in ("pending", "running")
        and not has_client(RunFolder(place / row.run_id))
    ]
    if not waiting or modal_credentials_source() is None:
        return list(rows)
    statuses = _statuses_there()
    ended = [run_id for run_id in waiting if run_id in statuses]
    if ended:
        what = "1 run has" if len(ended) == 1 else f"{len(ended)} runs have"
        click.echo(f"{what} ended on Modal: ml-experiments runs sync brings the results", err=True)
    return [
        dataclasses.replace(row, status=statuses[row.run_id]) if row.run_id in ended else row
        for row in rows
    ]


def end_lost_jobs(rows: Sequence[RunRow]) -> bool:
    """Write how runs on Slurm have ended whose jobs are gone, by one question to it.

    Returns:
        Whether there were any, so that the rows are not what the folders say any more.
    """
    from ml_experiments.runs.folder import RunFolder
    from ml_experiments.settings import runs_dir

    waiting = [
        RunFolder(runs_dir().expanduser().resolve() / row.run_id)
        for row in rows
        if row.backend == "slurm" and row.status in ("pending", "running")
    ]
    if not waiting:
        return False
    from ml_experiments.backends.slurm.queue import Queue
    from ml_experiments.backends.slurm.run_handle import end_lost_runs

    return end_lost_runs(waiting, Queue(every_s=math.inf)) > 0


def _statuses_there() -> dict[str, str]:
    from ml_experiments.errors import BackendError
    from ml_experiments.serialization.files import write_json_atomically
    from ml_experiments.settings import index_dir

    file = index_dir() / "ended-on-modal.json"
    try:
        known = json.loads(file.read_text("utf-8"))
        if 0 <= time.time() - known["asked_at"] < _ASKED_EVERY_S:
            return dict(known["statuses"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # never asked, or the file is damaged
    from ml_experiments.backends.modal.remote_runs import statuses_there

    try:
        statuses = statuses_there()
    except BackendError as e:
        click.echo(f"what has ended on Modal is not known: {e}", err=True)
        return {}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_json_atomically(file, {"asked_at": time.time(), "statuses": statuses})
    except OSError:
        pass  # asked again the next time
    return statuses


def _lacks_files(path: Path) -> bool:
    """Return whether a run is not here, or without the artifacts that it has left."""
    from ml_experiments.runs.folder import RunFolder

    if not (path / "result.json").exists():
        return not path.exists()
    artifacts = RunFolder(path).read_result().artifacts
    return not all((path / artifact.path).exists() for artifact in artifacts)


def _waits_for_result(path: Path) -> bool:
    from ml_experiments.runner.following import has_client
    from ml_experiments.runs.folder import RunFolder

    return not (path / "result.json").exists() and not has_client(RunFolder(path))


def _id_of(run: str) -> str:
    """Return the id of a run that is here, or what may be the id of one that is not."""
    from ml_experiments.cli.runs.finding import find_run
    from ml_experiments.errors import RunNotFoundError

    try:
        return find_run(run).path.name
    except RunNotFoundError:
        if "/" in run or run.startswith("."):
            raise
        return run


def _refuse_run_of_elsewhere(path: Path) -> None:
    from ml_experiments.errors import Error, RunFolderError
    from ml_experiments.runs.folder import RunFolder

    try:
        backend = RunFolder(path).read_spec().backend
    except RunFolderError:  # not here, for example
        return
    if backend not in (None, "modal"):
        raise Error(f"run {path.name} was not on Modal (its backend is {backend}); it is in {path}")


def _note_problems(run_id: str, fetched: Fetched) -> int:
    """Say which files are not what the run has left; return the exit code."""
    from ml_experiments.runner.display.printable import printable

    for files, problem in (
        (fetched.left_behind, "not readable on the volume, and left there"),
        (fetched.damaged_here, "damaged here, and fetched again"),
        (fetched.damaged_there, "damaged on the volume, and not what the run left"),
    ):
        if files:
            named = printable(", ".join(files[:3]))
            more = f" and {len(files) - 3} more" if len(files) > 3 else ""
            click.echo(f"{run_id}: {problem}: {named}{more}", err=True)
    return 1 if fetched.damaged_there else 0
