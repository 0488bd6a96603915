"""The code of old runs: brought back from git, with the changes that were not committed.

Nothing is written into the repository, and no program that its config names is run: all is done in
a temporary repository, which reads the objects of the first.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.errors import Error
from ml_experiments.runs.provenance.git import SAFE_OPTIONS
from ml_experiments.settings import git_environment

_TIME_LIMIT_S = 120.0


class CodeNotFoundError(Error):
    """Raised when the code of a run can't be brought back; the message says why."""


@dataclass(frozen=True)
class CodeStore:
    """Makes git trees of what runs recorded of their code."""

    root: Path
    _scratch: Path

    @classmethod
    @contextlib.contextmanager
    def open(cls, root: Path) -> Iterator[CodeStore]:
        """Open the repository of a work tree.

        Raises:
            CodeNotFoundError: If it is gone, or there is no git.
        """
        if shutil.which("git") is None:
            raise CodeNotFoundError("git is not installed here")
        if not root.is_dir():
            raise CodeNotFoundError(f"the repository {root} is not here any more")
        asked = ("--git-path", "objects", "--show-object-format")
        objects, object_format = _git(root, {}, "rev-parse", *asked).splitlines()
        with tempfile.TemporaryDirectory() as folder:
            store = cls(root, Path(folder))
            (store._scratch / "files").mkdir()
            _git(
                store._scratch,
                {},
                *("init", "--quiet", "--bare", "--template="),
                f"--object-format={object_format}",
                "repository",
            )
            alternates = store._scratch / "repository" / "objects" / "info" / "alternates"
            alternates.parent.mkdir(exist_ok=True)
            alternates.write_text(f"{(root / objects).resolve()}\n", encoding="utf-8")
            yield store

    def tree(self, code: Mapping[str, Any]) -> str:
        """Return the git tree of a recorded code state.

        Args:
            code: What `describe_code` has returned.

        Raises:
            CodeNotFoundError: If the commit is gone, or the changes were not recorded whole.
        """
        commit = code.get("commit")
        if not isinstance(commit, str) or not commit.isalnum():
            raise CodeNotFoundError("the run recorded no git commit")
        if code.get("diff_truncated"):
            raise CodeNotFoundError(
                "the changes that were not committed are too many: only their "
                "beginning was recorded"
            )
        self._git("read-tree", commit)
        diff = code.get("diff")
        if diff:
            self._git("apply", "--cached", "--whitespace=nowarn", "-", given=str(diff))
        return self._git("write-tree").strip()

    def diff(self, first: str, second: str) -> str:
        """Return the patch from one tree to another."""
        options = ("--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")
        return self._git("diff", *options, first, second)

    def export(self, tree: str, folder: Path) -> None:
        """Write the files of a tree into a folder, which appears whole.

        Raises:
            CodeNotFoundError: If it can't be written.
        """
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        try:
            temporary.mkdir(parents=True)
            self._git("read-tree", tree)
            self._git("checkout-index", "--all", f"--prefix={temporary}/")
            with contextlib.suppress(FileExistsError):
                temporary.rename(folder)
        except OSError as e:
            if not folder.is_dir():  # as it is if another process was faster
                raise CodeNotFoundError(f"{folder} can't be written: {e.strerror}") from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _git(self, *arguments: str, given: str = "") -> str:
        own = {
            "GIT_DIR": str(self._scratch / "repository"),
            "GIT_WORK_TREE": str(self._scratch / "files"),
        }
        return _git(self._scratch / "files", own, *arguments, given=given)


def _git(folder: Path, environment: Mapping[str, str], *arguments: str, given: str = "") -> str:
    try:
        done = subprocess.run(
            ["git", *SAFE_OPTIONS, *arguments],
            cwd=folder,
            env={**git_environment(), **environment},
            input=given.encode("utf-8", "surrogateescape"),
            capture_output=True,
            timeout=_TIME_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as e:
        raise CodeNotFoundError(f"git {arguments[0]}: {e}") from e
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        raise CodeNotFoundError(f"git {arguments[0]}: {lines[0] if lines else done.returncode}")
    return done.stdout.decode("utf-8", "surrogateescape")


def root_of(code: Mapping[str, Any]) -> Path | None:
    """Return the work tree that a recorded code state was in; None without one."""
    root = code.get("root")
    return Path(os.fspath(root)) if isinstance(root, str) and root else None
