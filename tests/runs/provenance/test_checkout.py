"""The code of old runs, brought back from git."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ml_experiments.runs.provenance.checkout import CodeNotFoundError, CodeStore, root_of
from ml_experiments.runs.provenance.git import describe_code
from tests.support.git_repo import commit, git, make_repo


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    return make_repo(tmp_path / "repo", {"train.py": "lr = 1\n", "deep/one.py": "one = 1\n"})


def everything(repo: Path) -> dict[str, bytes]:
    files = (path for path in repo.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files if path.name != "index"}


def test_code_comes_back_with_its_uncommitted_changes(repo: Path, tmp_path: Path) -> None:
    (repo / "train.py").write_text("lr = 2\n")
    (repo / "deep" / "two.py").write_text("two = 2\n")
    git(repo, "add", "--intent-to-add", "deep/two.py")
    (repo / "deep" / "one.py").unlink()
    code = describe_code(repo)
    git(repo, "checkout", "--quiet", "--", "deep/one.py")
    commit(repo, {"train.py": "lr = 3\n"})
    before = everything(repo)
    with CodeStore.open(repo) as store:
        store.export(store.tree(code), tmp_path / "old")
        store.export(store.tree(code), tmp_path / "old")  # it is there already
    files = {p.relative_to(tmp_path / "old") for p in (tmp_path / "old").rglob("*.py")}
    assert files == {Path("train.py"), Path("deep/two.py")}
    assert (tmp_path / "old" / "train.py").read_text() == "lr = 2\n"
    assert everything(repo) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "repo"]


def test_two_states_are_compared(repo: Path) -> None:
    first = describe_code(repo)
    (repo / "train.py").write_text("lr = 2\n")
    second = describe_code(repo)
    commit(repo, {})
    third = describe_code(repo)
    with CodeStore.open(repo) as store:
        trees = [store.tree(code) for code in (first, second, third)]
        assert trees[1] == trees[2]
        assert store.diff(trees[1], trees[2]) == ""
        assert "-lr = 1\n+lr = 2\n" in store.diff(trees[0], trees[1])


def test_code_in_a_linked_work_tree_comes_back(repo: Path, tmp_path: Path) -> None:
    git(repo, "worktree", "add", "--quiet", str(tmp_path / "linked"))
    (tmp_path / "linked" / "train.py").write_text("lr = 5\n")
    code = describe_code(tmp_path / "linked")
    with CodeStore.open(tmp_path / "linked") as store:
        store.export(store.tree(code), tmp_path / "old")
    assert (tmp_path / "old" / "train.py").read_text() == "lr = 5\n"


def test_what_was_not_recorded_or_is_gone_is_named(repo: Path, tmp_path: Path) -> None:
    code = describe_code(repo)
    with CodeStore.open(repo) as store:
        for change, message in (
            ({"commit": None}, "recorded no git commit"),
            ({"commit": "--output=x"}, "recorded no git commit"),
            ({"commit": "0" * 40}, "git read-tree"),
            ({"diff_truncated": True}, "only their beginning"),
            ({"diff": "no patch"}, "git apply"),
        ):
            with pytest.raises(CodeNotFoundError, match=message):
                store.tree({**code, **change})
    with pytest.raises(CodeNotFoundError, match="not here any more"), CodeStore.open(repo / "x"):
        pass
    (tmp_path / "empty").mkdir()
    with pytest.raises(CodeNotFoundError, match="rev-parse"), CodeStore.open(tmp_path / "empty"):
        pass
    assert root_of({}) is None


def test_no_program_that_the_repository_names_is_run(repo: Path, tmp_path: Path) -> None:
    commit(repo, {".gitattributes": "*.py filter=evil diff=evil\n"})
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\ncat\n")
    script.chmod(0o755)
    for name in ("filter.evil.smudge", "filter.evil.clean", "diff.evil.textconv"):
        subprocess.run(["git", "config", name, str(script)], cwd=repo, check=True)
    code = describe_code(repo)
    with CodeStore.open(repo) as store:
        store.export(store.tree(code), tmp_path / "old")
    assert not (tmp_path / "was-run").exists()
