"""The git state of a run's code; no program that a repository names is run."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ml_experiments.redaction.diffs import redact_diff
from ml_experiments.settings import git_environment

MAX_DIFF_BYTES = 256 * 1024
MAX_UNTRACKED = 1000
TIME_LIMIT_S = 5.0

_CHUNK = 1024 * 1024
_MAX_ARGUMENTS = 500  # of one command
# a repository's own config names programs; none of them may run only to describe its state
SAFE_OPTIONS = (
    "--no-pager",
    "--no-optional-locks",
    *("-c", "core.fsmonitor=false"),
    *("-c", "core.quotePath=false"),
    *("-c", "protocol.allow=never"),  # a partial clone would fetch what it lacks
)
_DIFF_OPTIONS = ("--no-ext-diff", "--no-textconv", "--no-color", "--submodule=short")


class _GitError(Exception):
    """Raised when git fails or takes too long."""


@dataclass(frozen=True)
class _Git:
    """Runs git in one work tree, until a deadline."""

    program: str
    root: Path
    deadline: float
    options: tuple[str, ...] = SAFE_OPTIONS
    index: Path | None = None  # used instead of the repository's own

    @contextlib.contextmanager
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
                env=git_environment() | ({"GIT_INDEX_FILE": str(self.index)} if self.index else {}),
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
            limit_s = max(0.01, self.deadline - time.monotonic())
            with contextlib.suppress(AttributeError, OSError):  # only Linux has pidfd_open
                _wait_for_end(process.pid, limit_s)
                limit_s = 0
            return process.wait(limit_s)
        except BaseException as e:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(e, subprocess.TimeoutExpired):
                raise _GitError(f"git {command} took more than {TIME_LIMIT_S:g} s") from e
            raise

    def without_filters(self) -> _Git:
        """Return a git that runs none of the filter programs of the repository's own config."""
        if _has_no_filters(_git_dir(self.root)):
            return self
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
        return dataclasses.replace(self, options=(*self.options, *extra))


def _wait_for_end(pid: int, limit_s: float) -> None:
    # Popen.wait polls at growing intervals, and may take twice as long
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(limit_s * 1000)
    finally:
        os.close(descriptor)


def describe_code(folder: Path) -> dict[str, Any]:
    """Return the git commit, branch and uncommitted changes of the work tree around a folder.

    Empty without a repository or without git. `problem` is why something is missing. The
    diff against the commit is cut at MAX_DIFF_BYTES bytes and holds no secrets; `diff_sha256` is
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
        index = _read_index(git)
        # `git status` does not compare these files
        absent = [path for path in index.absent if os.path.lexists(git.root / path)]
        unchecked = [*index.unchanged, *absent]
        with tempfile.TemporaryDirectory() if unchecked else contextlib.nullcontext() as scratch:
            if scratch is not None:
                git = _with_all_checked(git, unchecked, Path(scratch) / "index")
            state |= _status(git)
            if state["dirty"]:
                state |= _diff(git, state["commit"])
        submodules = _submodules(git, index.submodules)
        if submodules:
            state["submodules"] = submodules
            states = {submodule["dirty"] for submodule in submodules.values()}
            if not state["dirty"] and states != {False}:
                state["dirty"] = True if True in states else None
    except (_GitError, OSError) as e:
        state["problem"] = str(e)
    return state


@dataclass(frozen=True)
class _Index:
    """What git's index holds besides the contents of files.

    Attributes:
        stamp: Changes when git writes the index, which it always does to a new file.
        unchanged: Files that are marked as unchanged (`git update-index --assume-unchanged`).
        absent: Files that are marked as absent (`git update-index --skip-worktree`).
        submodules: Paths of submodules.
    """

    stamp: tuple[int, ...]
    unchanged: list[str]
    absent: list[str]
    submodules: list[str]


_indexes: dict[Path, _Index] = {}  # listing a large one takes as long as `git status`


def _read_index(git: _Git) -> _Index:
    file = _git_dir(git.root) / "index"
    try:
        status = file.stat()
    except FileNotFoundError:  # nothing was ever added
        return _Index((), [], [], [])
    stamp = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    known = _indexes.get(file)
    if known is not None and known.stamp == stamp:
        return known
    index = _Index(stamp, [], [], [])
    with git.run("ls-files", "-v", "--stage", "-z") as output:
        entries = output.read().decode("utf-8", "surrogateescape").split("\0")
    for entry in filter(None, entries):
        facts, _, path = entry.partition("\t")  # such as `H 100644 <hash> 0`
        if facts[0].islower():
            index.unchanged.append(path)
        elif facts[0] == "S":
            index.absent.append(path)
        if facts[2:].startswith("160000 ") and path not in index.submodules[-1:]:
            index.submodules.append(path)
    _indexes[file] = index
    return index


def _git_dir(root: Path) -> Path:
    entry = root / ".git"
    if entry.is_dir():
        return entry
    # of a linked work tree or a submodule
    return root / entry.read_text(encoding="utf-8").removeprefix("gitdir:").strip()


def _with_all_checked(git: _Git, unchecked: list[str], index: Path) -> _Git:
    """Return a git whose index, a copy, exempts no file from comparison."""
    shutil.copy2(_git_dir(git.root) / "index", index)
    git = dataclasses.replace(git, index=index)
    for start in range(0, len(unchecked), _MAX_ARGUMENTS):
        paths = unchecked[start : start + _MAX_ARGUMENTS]
        for flag in ("--no-assume-unchanged", "--no-skip-worktree"):
            with git.run("update-index", flag, "--", *paths):
                pass
    return git


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
        "dirty": any(not e.startswith("# ") for e in entries if e),
        "untracked": untracked[:MAX_UNTRACKED],
    }
    if len(untracked) > MAX_UNTRACKED:
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
            kept += chunk[: MAX_DIFF_BYTES - len(kept)]
            size += len(chunk)
    if not size:
        return {}
    return {
        "diff": redact_diff(kept.decode("utf-8", "replace")),
        "diff_sha256": digest.hexdigest(),
        "diff_truncated": size > MAX_DIFF_BYTES,
    }


def _submodules(git: _Git, paths: list[str]) -> dict[str, dict[str, Any]]:
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


def _has_no_filters(git_dir: Path) -> bool:
    """Return whether a repository's config certainly names no filter; git need not be run then."""
    try:
        common = git_dir / "commondir"  # of a linked work tree
        shared = (
            git_dir / common.read_text(encoding="utf-8").strip() if common.exists() else git_dir
        )
        config = (shared / "config").read_bytes().lower()
    except OSError:
        return False
    is_whole = b"include" not in config and not (git_dir / "config.worktree").exists()
    return is_whole and b"filter" not in config


def _has_git(place: Path) -> bool:
    try:
        return (place / ".git").exists()
    except OSError:
        return False
