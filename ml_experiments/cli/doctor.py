"""`ml-experiments doctor`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from huggingface_hub.constants import ENDPOINT

from ml_experiments.cli.table import Cell, Column, print_table
from ml_experiments.runs.provenance.nvidia import query_gpus
from ml_experiments.settings import modal_credentials_source, runs_dir


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def doctor(as_json: bool) -> int:
    """Say what works on this machine, and what to do about the rest.

    Exit code 1 when something is broken; what is merely absent is fine.
    """
    checks = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks]))
    else:
        rows: list[tuple[str | Cell, str, str]] = []
        for check in checks:
            rows.append((Cell(*_VERDICTS[check.ok]), check.name, check.found))
            if check.advice:
                rows.append(("", "", f"-> {check.advice}"))
        print_table((Column(""),) * 3, rows)
    return int(any(check.ok is False for check in checks))


_VERDICTS = {True: ("ok", "green"), False: ("broken", "red"), None: ("absent", "yellow")}


HUB_LIMIT_S = 3.0


LOW_DISK_GB = 10


_MOVE_RUNS = "set ML_EXPERIMENTS_RUNS_DIR to a folder on another disk"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What was looked at.
        ok: Whether it works; None when it's absent and only some runs need it.
        found: What was found.
        advice: What to do about it; empty when it works.
    """

    name: str
    ok: bool | None
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """Look at everything that runs depend on; takes a few seconds at most."""
    looks: list[Callable[[], Check]] = [
        _python,
        _gpu,
        _torch,
        _modal_client,
        _modal_token,
        _hub,
        _disk,
        _git,
    ]
    return [look() for look in looks]


def _python() -> Check:
    return Check("python", True, f"{platform.python_version()} at {sys.executable}")


def _gpu() -> Check:
    try:
        found = query_gpus("name", "memory.total")
    except FileNotFoundError:
        return Check("gpu", None, "none", "runs use the CPU here; --gpu a10g runs on Modal")
    except (OSError, subprocess.SubprocessError) as e:
        return Check("gpu", False, f"nvidia-smi fails: {e}", "reinstall or reload the driver")
    return Check("gpu", True, "; ".join(f"{name}, {memory} MiB" for name, memory in found))


def _torch() -> Check:
    version = _version("torch")
    if version is None:
        return Check(
            "torch", None, "not installed", "pip install 'ml-experiments[diffusion]' for tasks/"
        )
    return Check("torch", True, version)


def _modal_client() -> Check:
    version = _version("modal")
    if version is None:
        return Check("modal client", False, "not installed", "pip install 'modal>=1.6,<1.7'")
    if not version.startswith("1.6."):
        return Check("modal client", False, version, "pip install 'modal>=1.6,<1.7'")
    return Check("modal client", True, version)


def _modal_token() -> Check:
    source = modal_credentials_source()
    if source is None:
        return Check(
            "modal token", None, "none", "modal token new; until then --backend local works"
        )
    return Check("modal token", True, f"in {source}; not checked against the service")


def _hub() -> Check:
    try:
        request = urllib.request.Request(ENDPOINT, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_LIMIT_S):
            return Check("model hub", True, f"{ENDPOINT} answers")
    except urllib.error.HTTPError as e:
        return Check("model hub", True, f"{ENDPOINT} answers with status {e.code}")
    except (OSError, ValueError) as e:
        reason = getattr(e, "reason", e)
        advice = "local folders, cached models and tiny-digits still work"
        return Check("model hub", False, f"{ENDPOINT} does not answer: {reason}", advice)


def _disk() -> Check:
    folder = runs_dir()
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    free_gb = shutil.disk_usage(existing).free / 1e9
    found = f"{free_gb:.0f} GB free for {folder}"
    if not _is_writable(existing):
        return Check("run folders", False, f"{existing} is not writable", _MOVE_RUNS)
    if free_gb < LOW_DISK_GB:
        return Check("run folders", False, found, f"free some space, or {_MOVE_RUNS}")
    return Check("run folders", True, found)


def _git() -> Check:
    path = shutil.which("git")
    if path is None:
        return Check("git", None, "not installed", "without it, runs don't record their commit")
    return Check("git", True, path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK)
