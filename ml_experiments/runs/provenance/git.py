"""Where the code of a run stood, as git sees it; runs no program that a repository names."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ml_experiments.redaction.diffs import redact_diff
from ml_experiments.settings import git_environment

LARGEST_DIFF = 256 * 1024
MOST_UNTRACKED = 1000
TIME_LIMIT_S = 5.0

_CHUNK = 1024 * 1024
# a repository's own config names programs; none of them may run just because it's looked at
SAFE_OPTIONS = (
    "--no-pager",
    "--no-optional-locks",
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.quotePath=false"),
    *("-c", "protocol.allow=never"),  # a partial clone would fetch what it lacks
)
_DIFF_OPTIONS = ("--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short")


class _GitError(Exception):
    """Raised when git refuses, or takes too long."""


@dataclass(frozen=True)
class _Git:
    """Runs git in one work tree, until a deadline."""

    program: str
    root: Path
    deadline: float
    options: tuple[str, ...] = SAFE_OPTIONS

    @contextmanager
    def run(self, *arguments: str, allowed: tuple[int, ...] = (0,)) -> Iterator[IO[bytes]]:
        """Give git's output as an open temporary file, which may be large.

        Raises:
            _GitError: If git ends with another exit code, or the deadline passes.
        """
        # not a pipe: a program that git left behind could keep that open for ever
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [self.program, *self.options, *arguments],
                cwd=self.root,
                env=git_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                start_new_session=True,
            )
            code = self._wait(process, arguments[0])
            if code not in allowed:
                errors.seek(0)
                lines = errors.read(4096).decode("utf-8", "replace").splitlines()
                raise _GitError(f"git {arguments[0]}: {lines[0] if lines else f'exit code {code}'}")
            output.seek(0)
            yield output

    def _wait(self, process: subprocess.Popen[bytes], command: str) -> int:
        try:
            return process.wait(max(0.01, self.deadline - time.monotonic()))
        except BaseException as e:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(e, subprocess.TimeoutExpired):
                raise _GitError(f"git {command} took more than {TIME_LIMIT_S:g} s") from e
            raise

    def without_filters(self) -> _Git:
        """Return a git that runs none of the filter programs of the repository's own config."""
        with self.run(
            *("config", "--includes", "--show-scope", "--null", "--name-only"),
            *("--get-regexp", r"^filter\..*\.(clean|smudge|process|required)$"),
            allowed=(0, 1),
        ) as output:
            fields = output.read().decode("utf-8", "surrogateescape").split("\0")
        extra: list[str] = []
        for scope, name in zip(fields[::2], fields[1::2], strict=False):
            if scope in ("local", "worktree"):
                extra += ["-c", f"{name}={'false' if name.endswith('.required') else ''}"]
        return _Git(self.program, self.root, self.deadline, (*self.options, *extra))


def describe_code(folder: Path) -> dict[str, Any]:
    """Return the git commit, branch and uncommitted changes of the work tree around a folder.

    Empty without a repository or without git. `problem` says why something is missing. The
    diff against the commit is cut at LARGEST_DIFF bytes and holds no secrets; `diff_sha256` is
    of the whole, as git gives it.
    """
    root = _work_tree(folder)
    program = shutil.which("git")
    if root is None or program is None:
        return {}
    return _describe(_Git(program, root, time.monotonic() + TIME_LIMIT_S))


def _describe(git: _Git) -> dict[str, Any]:
    state: dict[str, Any] = {"root": str(git.root), "commit": None, "branch": None, "dirty": None}
    try:
        git = git.without_filters()
        state |= _status(git)
        if state["dirty"]:
            state |= _diff(git, state["commit"])
        submodules = _submodules(git)
        if submodules:
            state["submodules"] = submodules
            state["dirty"] |= any(submodule["dirty"] for submodule in submodules.values())
    except (_GitError, OSError) as e:
        state["problem"] = str(e)
    return state


def _status(git: _Git) -> dict[str, Any]:
    with git.run(
        *("status", "--porcelain=v2", "--branch", "-z", "--untracked-files=all"),
        *("--no-renames", "--ignore-submodules=dirty"),
    ) as output:
        entries = output.read().decode("utf-8", "backslashreplace").split("\0")
    headers = dict(e[2:].split(" ", 1) for e in entries if e.startswith("# "))
    untracked = [e[2:] for e in entries if e.startswith("? ")]
    commit, branch = headers.get("branch.oid"), headers.get("branch.head")
    state: dict[str, Any] = {
        "commit": None if commit == "(initial)" else commit,
        "branch": None if branch == "(detached)" else branch,
        "dirty": any(e[:2] in ("1 ", "u ", "? ") for e in entries),
        "untracked": untracked[:MOST_UNTRACKED],
    }
    if len(untracked) > MOST_UNTRACKED:
        state["untracked_count"] = len(untracked)
    return state


def _diff(git: _Git, commit: str | None) -> dict[str, Any]:
    if commit is None:
        with git.run("hash-object", "-t", "tree", os.devnull) as output:
            commit = output.read().decode("ascii").strip()
    digest, kept, size = hashlib.sha256(), b"", 0
    # full hashes, so that two different changes of a binary file make two different diffs
    with git.run(
        "diff", *_DIFF_OPTIONS, "--full-index", "--no-renames", "--ignore-submodules=dirty", commit
    ) as output:
        while chunk := output.read(_CHUNK):
            digest.update(chunk)
            kept += chunk[: LARGEST_DIFF - len(kept)]
            size += len(chunk)
    if not size:
        return {}
    return {
        "diff": redact_diff(kept.decode("utf-8", "replace")),
        "diff_sha256": digest.hexdigest(),
        "diff_truncated": size > LARGEST_DIFF,
    }


def _submodules(git: _Git) -> dict[str, dict[str, Any]]:
    if not (git.root / ".gitmodules").is_file():
        return {}
    with git.run(
        *("config", "--file", ".gitmodules", "--null", "--get-regexp", r"^submodule\..*\.path$"),
        allowed=(0, 1),
    ) as output:
        entries = output.read().decode("utf-8", "surrogateescape").split("\0")
    paths = [entry.partition("\n")[2] for entry in entries if entry]
    # one that was not checked out has no code here
    return {
        path: _describe(_Git(git.program, git.root / path, git.deadline))
        for path in paths
        if _is_inside(git.root / path, git.root) and (git.root / path / ".git").exists()
    }


def _is_inside(path: Path, root: Path) -> bool:
    resolved = path.resolve()
    return resolved != root.resolve() and resolved.is_relative_to(root.resolve())


def _work_tree(folder: Path) -> Path | None:
    folder = folder.resolve()
    return next((place for place in (folder, *folder.parents) if _has_git(place)), None)


def _has_git(place: Path) -> bool:
    try:
        return (place / ".git").exists()
    except OSError:
        return False
