"""Apps of runs that have containers on Modal, though none of their runs goes on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import modal

from ml_experiments.backends.modal.billing.bills import app_of
from ml_experiments.backends.modal.errors import platform_errors, require_access
from ml_experiments.errors import BackendError, RunFolderError
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.registry import RunRegistry

_LIST_LIMIT_S = 60
_RUN_APP = re.compile(r"ml-experiments-(\d{8}-\d{6}-\w{7})")
_GOES_ON = ("pending", "running")
_WITHOUT = "see Modal's dashboard"


@dataclass(frozen=True)
class IdleApp:
    """An app with containers that no run needs.

    Attributes:
        app_id: Modal's name for it.
        containers: The ids of its containers.
        run_ids: The runs that it was started for.
        why: Why none of them needs it.
        is_known: Whether all of its runs are in this runs folder; another one may go on.
    """

    app_id: str
    containers: tuple[str, ...]
    run_ids: tuple[str, ...]
    why: str
    is_known: bool


def find_idle_apps(runs_dir: Path) -> list[IdleApp]:
    """Return the apps of runs that have containers though no run of this folder goes on in them.

    Args:
        runs_dir: The folder whose runs count.

    Raises:
        BackendError: If Modal can't be reached.
    """
    require_access(_WITHOUT)
    containers = _list_containers()
    in_use = set(_apps_in_use(runs_dir))
    with platform_errors("list the apps", _WITHOUT):
        found = []
        for app in modal.Environment.from_context().apps.list():
            match = _RUN_APP.fullmatch(app.description or app.name or "")
            if match is None or app.app_id not in containers or app.app_id in in_use:
                continue
            tagged = {v for name, v in app.get_tags().items() if name.startswith("run_id")}
            idle = _describe(str(app.app_id), {match[1], *tagged}, containers, runs_dir)
            found += [idle] if idle is not None else []
        return found


def stop_apps(apps: Iterable[IdleApp]) -> None:
    """End apps with all their containers.

    Raises:
        BackendError: If Modal can't be reached, or refuses.
    """
    wanted = {app.app_id for app in apps}
    with platform_errors("stop an app", _WITHOUT):
        for app in modal.Environment.from_context().apps.list():
            if app.app_id in wanted:
                app.stop()


def _describe(
    app_id: str, run_ids: Iterable[str], containers: dict[str, list[str]], runs_dir: Path
) -> IdleApp | None:
    """Return an app as idle; None where a run goes on in it."""
    names = tuple(sorted(run_ids))
    statuses = dict(_statuses(names, runs_dir))
    if set(statuses.values()) & {*_GOES_ON}:
        return None
    missing = [run_id for run_id in names if run_id not in statuses]  # one may go on
    if not missing:
        ended = ", ".join(f"{run_id} ended: {status}" for run_id, status in statuses.items())
        return IdleApp(app_id, tuple(containers[app_id]), names, ended, is_known=True)
    why = f"its run {missing[-1]} is not in {runs_dir}"
    return IdleApp(app_id, tuple(containers[app_id]), names, why, is_known=False)


def _apps_in_use(runs_dir: Path) -> Iterator[str | None]:
    """Yield the apps in which runs go on, as recorded: an app has tags of its first runs only."""
    for row in RunRegistry(runs_dir).rows(None, RunFilter(backend="modal", status=_GOES_ON)):
        yield app_of(runs_dir / row.run_id)


def _statuses(run_ids: Iterable[str], runs_dir: Path) -> Iterator[tuple[str, str]]:
    for run_id in run_ids:
        if not (runs_dir / run_id).is_dir():
            continue
        try:
            yield run_id, str(RunFolder(runs_dir / run_id).outcome().status)
        except RunFolderError:  # it may go on
            yield run_id, "running"


def _list_containers() -> dict[str, list[str]]:
    """Return the ids of the containers of each app.

    Modal's library has no list of containers, its command has one.
    """
    command = [sys.executable, "-m", "modal", "container", "list", "--json"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIST_LIMIT_S, check=True
        )
        rows = [(row["app_id"], row["container_id"]) for row in json.loads(done.stdout)]
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as e:
        raise BackendError(
            f"`modal container list --json` did not list the containers ({e}); see them on "
            "Modal's dashboard"
        ) from e
    containers: dict[str, list[str]] = {}
    for app_id, container_id in rows:
        containers.setdefault(app_id, []).append(container_id)
    return containers
