"""The manifest is true about the code, and gathering it is harmless."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from ml_experiments.runs.folder import make_runs_dir
from ml_experiments.runs.provenance import git as code_state
from ml_experiments.runs.provenance.git import describe_code


@pytest.fixture(autouse=True)
def git_config(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the git config of this machine out."""
    config = tmp_path_factory.mktemp("git") / "config"
    config.write_text("[user]\nname = Tester\nemail = tester@example.com\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return config


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-b", "main")
    (folder / "train.py").write_text("lr = 1\n")
    (folder / ".gitignore").write_text("ignored/\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_a_clean_repository_is_its_commit_and_branch(repository: Path) -> None:
    (repository / "ignored").mkdir()
    (repository / "ignored" / "x").write_text("x")
    inside = repository / "ignored"
    assert describe_code(inside) == {
        "root": str(repository),
        "commit": git(repository, "rev-parse", "HEAD"),
        "branch": "main",
        "dirty": False,
        "untracked": [],
    }


def test_a_dirty_tree_is_recorded_so_that_it_can_be_rebuilt(
    repository: Path, tmp_path: Path
) -> None:
    (repository / "train.py").write_text("lr = 2\n")
    (repository / "staged file ü.py").write_text("new\n")
    git(repository, "add", "staged file ü.py")
    (repository / "pkg").mkdir()
    (repository / "pkg" / "new.py").write_text("untracked\n")
    state = describe_code(repository)
    assert state["dirty"] is True
    assert state["untracked"] == ["pkg/new.py"]
    assert state["diff_truncated"] is False
    assert state["diff_sha256"] == hashlib.sha256(state["diff"].encode()).hexdigest()
    git(tmp_path, "clone", str(repository), "copy")
    subprocess.run(
        ["git", "apply"], cwd=tmp_path / "copy", input=state["diff"].encode(), check=True
    )
    assert (tmp_path / "copy" / "train.py").read_text() == "lr = 2\n"
    assert (tmp_path / "copy" / "staged file ü.py").read_text() == "new\n"
    json.dumps(state, allow_nan=False).encode()


def test_a_recorded_diff_holds_no_secrets_but_is_hashed_as_it_is(repository: Path) -> None:
    (repository / "train.py").write_text(
        'api_key = "LEAK1"\nurl = "postgres://me:LEAK2@db/x"\nlr = 2\n'
    )
    state = describe_code(repository)
    assert "LEAK" not in json.dumps(state)
    assert "+lr = 2" in state["diff"]
    whole = git(repository, "diff", "--full-index", "HEAD")
    assert "LEAK1" in whole
    assert state["diff_sha256"] == hashlib.sha256(f"{whole}\n".encode()).hexdigest()


def test_an_untracked_file_alone_makes_the_tree_dirty(repository: Path) -> None:
    (repository / "new.py").write_text("x")
    state = describe_code(repository)
    assert (state["dirty"], state["untracked"]) == (True, ["new.py"])
    assert "diff" not in state


def test_runs_are_no_change_of_the_code(repository: Path) -> None:
    make_runs_dir(repository / "results" / "runs")
    (repository / "results" / "runs" / "log.txt").touch()
    assert describe_code(repository)["dirty"] is False
    (repository / "mine").mkdir()
    make_runs_dir(repository / "mine")
    assert list((repository / "mine").iterdir()) == []  # a folder of the user's stays as it is


def test_a_large_diff_is_cut_and_hashed_whole(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_state, "MAX_UNTRACKED", 5)
    (repository / "train.py").write_text("x = 'ü'\n" * 200_000)
    for i in range(10):
        (repository / f"{i}.py").touch()
    state = describe_code(repository)
    whole = subprocess.run(
        ["git", "diff", "--full-index", "HEAD"], cwd=repository, capture_output=True, check=True
    ).stdout
    assert state["diff_truncated"] is True
    assert len(state["diff"].encode()) <= 256 * 1024 + 3
    assert state["diff_sha256"] == hashlib.sha256(whole).hexdigest()
    assert (len(state["untracked"]), state["untracked_count"]) == (5, 10)


def test_two_changes_of_a_binary_file_are_told_apart(repository: Path) -> None:
    file = repository / "weights.bin"
    hashes = set()
    for content in (b"\0one", b"\0two", b"\0three"):
        file.write_bytes(content)
        git(repository, "add", "weights.bin")
        hashes.add(describe_code(repository)["diff_sha256"])
    assert len(hashes) == 3


def test_no_repository_or_no_git_is_empty(
    tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert describe_code(tmp_path) == {}
    git(tmp_path, "init", "--bare", "bare.git")
    assert describe_code(tmp_path / "bare.git") == {}
    assert describe_code(tmp_path / "does not exist") == {}
    monkeypatch.setenv("PATH", "")
    assert describe_code(repository) == {}


def test_a_repository_without_commits_is_described(tmp_path: Path) -> None:
    git(tmp_path, "init", "-b", "fresh")
    (tmp_path / "a.py").write_text("a\n")
    git(tmp_path, "add", "a.py")
    state = describe_code(tmp_path)
    assert (state["commit"], state["branch"], state["dirty"]) == (None, "fresh", True)
    assert "+a" in state["diff"]


def test_a_detached_head_and_a_linked_work_tree_are_described(
    repository: Path, tmp_path: Path
) -> None:
    git(repository, "worktree", "add", "--detach", str(tmp_path / "linked"))
    state = describe_code(tmp_path / "linked")
    assert state["root"] == str(tmp_path / "linked")
    assert (state["branch"], state["dirty"]) == (None, False)
    assert state["commit"] == git(repository, "rev-parse", "HEAD")


def test_git_variables_of_a_hook_do_not_lead_elsewhere(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(tmp_path, "init", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    state = describe_code(repository)
    assert (state["branch"], state["dirty"]) == ("main", False)


def test_a_damaged_repository_says_so(repository: Path) -> None:
    (repository / ".git" / "HEAD").write_text("garbage")
    state = describe_code(repository)
    assert state["commit"] is None
    assert "git " in state["problem"]


def test_changes_inside_a_submodule_are_seen(repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-b", "main")
    git(outer, "submodule", "add", str(repository), "libs/inner")
    git(outer, "commit", "-m", "with submodule")
    clean = describe_code(outer)
    assert clean["dirty"] is False
    assert clean["submodules"]["libs/inner"]["commit"] == git(repository, "rev-parse", "HEAD")
    (outer / "libs" / "inner" / "train.py").write_text("lr = 3\n")
    dirty = describe_code(outer)
    assert dirty["dirty"] is True
    assert "+lr = 3" in dirty["submodules"]["libs/inner"]["diff"]


def test_no_program_that_a_repository_names_is_run(repository: Path, tmp_path: Path) -> None:
    trap = tmp_path / "trap.sh"
    trap.write_text(f'#!/bin/sh\necho "$0 $@" >> {tmp_path}/sprung\ncat\n')
    trap.chmod(0o755)
    inner = repository / "inner"
    git(repository, "submodule", "add", str(repository), "inner")
    git(repository, "commit", "-m", "submodule")
    for place in (repository, inner):
        for key in (
            *("core.fsmonitor", "core.pager", "core.sshCommand", "core.editor", "diff.external"),
            *("diff.evil.command", "diff.evil.textconv", "interactive.diffFilter", "pager.diff"),
            *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process"),
        ):
            git(place, "config", key, str(trap))
        git(place, "config", "filter.evil.required", "true")
        git(place, "config", "core.hooksPath", str(tmp_path))
        (tmp_path / "post-index-change").write_text(trap.read_text())
        (tmp_path / "post-index-change").chmod(0o755)
        (place / ".gitattributes").write_text("* diff=evil filter=evil\n")
        (place / "train.py").write_text("changed = True\n")
    state = describe_code(repository)
    assert "problem" not in state
    assert "+changed = True" in state["diff"]
    assert "+changed = True" in state["submodules"]["inner"]["diff"]
    assert not (tmp_path / "sprung").exists()


def test_a_slow_git_is_given_up(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "bin" / "git"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 1000 & wait\n")
    slow.chmod(slow.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(code_state, "TIME_LIMIT_S", 1.0)
    state = describe_code(repository)
    assert "took more than 1 s" in state["problem"]
    assert state["dirty"] is None
    group = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while any(_is_alive_in(group, p) for p in psutil.process_iter()):
        assert time.monotonic() < deadline, "git's own children live on"
        time.sleep(0.05)


def _is_alive_in(group: int, process: psutil.Process) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.NoSuchProcess):
        return False


def test_a_new_file_is_noticed_in_any_folder(repository: Path) -> None:
    (repository / "src" / "deep" / "pkg").mkdir(parents=True)
    (repository / "src" / "deep" / "pkg" / "a.py").write_text("a = 1\n")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "second")
    (repository / "empty" / "inner").mkdir(parents=True)
    (repository / "holds" / "ignored").mkdir(parents=True)
    (repository / "holds" / "ignored" / "x").touch()
    for new in (
        *("src/new.py", "src/deep/new.py", "new.py"),
        *("empty/inner/new.py", "empty/new.py", "holds/new.py"),
    ):
        assert describe_code(repository)["dirty"] is False
        (repository / new).write_text("b = 1\n")
        assert describe_code(repository)["untracked"] == [new]
        (repository / new).unlink()


def test_an_edit_of_the_same_size_at_the_same_time_is_noticed(repository: Path) -> None:
    file = repository / "train.py"
    assert describe_code(repository)["dirty"] is False
    written = file.stat()
    for lr in (2, 3):  # neither edit changes a size or a time of modification
        file.write_text(f"lr = {lr}\n")
        os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))
        assert f"+lr = {lr}" in describe_code(repository)["diff"]


def test_a_commit_without_a_reflog_is_noticed(repository: Path) -> None:
    git(repository, "config", "core.logAllRefUpdates", "false")
    describe_code(repository)
    git(repository, "commit", "--allow-empty", "-m", "second")
    assert describe_code(repository)["commit"] == git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-b", "other")
    assert describe_code(repository)["branch"] == "other"
    git(repository, "pack-refs", "--all")
    git(repository, "commit", "--allow-empty", "-m", "third")
    assert describe_code(repository)["commit"] == git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize("flag", ["--assume-unchanged", "--skip-worktree"])
def test_a_change_that_git_overlooks_on_demand_is_recorded(repository: Path, flag: str) -> None:
    git(repository, "update-index", flag, "train.py")
    assert describe_code(repository)["dirty"] is False
    (repository / "train.py").write_text("lr = 2\n")
    assert git(repository, "status", "--porcelain") == ""
    state = describe_code(repository)
    assert state["dirty"] is True
    assert "+lr = 2" in state["diff"]
    (repository / "train.py").unlink()
    assert describe_code(repository)["dirty"] is (flag == "--assume-unchanged")
    assert git(repository, "ls-files", "-v", "train.py")[0] in "hS"  # its index is as it was


def test_a_new_commit_in_a_submodule_is_a_change(repository: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-b", "main")
    git(outer, "submodule", "add", str(repository), "inner")
    git(outer, "commit", "-m", "with submodule")
    git(outer / "inner", "commit", "--allow-empty", "-m", "second")
    state = describe_code(outer)
    assert (state["dirty"], state["submodules"]["inner"]["dirty"]) == (True, False)
    assert "+Subproject commit" in state["diff"]


@pytest.fixture
def embedded(repository: Path, tmp_path: Path) -> Path:
    """A repository inside the other, which no .gitmodules names."""
    git(tmp_path, "clone", str(repository), "repository/inner")
    git(repository, "add", "inner")
    git(repository, "commit", "-m", "embedded")
    return repository / "inner"


def test_a_repository_inside_that_gitmodules_does_not_name_is_described(
    repository: Path, embedded: Path
) -> None:
    assert describe_code(repository)["dirty"] is False
    (embedded / "new.py").touch()
    state = describe_code(repository)
    assert state["dirty"] is True
    assert state["submodules"]["inner"]["untracked"] == ["new.py"]


def test_with_a_submodule_that_cannot_be_read_nothing_is_clean(
    repository: Path, embedded: Path
) -> None:
    (embedded / ".git" / "index").write_bytes(b"damaged")
    assert describe_code(repository)["dirty"] is None
