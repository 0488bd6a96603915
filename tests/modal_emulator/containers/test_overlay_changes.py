"""Whatever a container does to a volume, its commit is exactly that."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.types import FileEntryType

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.container_shell import commit, containers, new_volume, reload

register_pickle_by_value(sys.modules[__name__])

_numbers = itertools.count()

Step = tuple[str, str, str]
Tree = dict[str, str | None]


@pytest.fixture(
    scope="module",
    params=[
        "namespaces",
        pytest.param("user_namespaces", marks=pytest.mark.slow),
        pytest.param("path_rewriting", marks=pytest.mark.slow),
    ],
)
def shared(request: pytest.FixtureRequest) -> Iterator[tuple[modal.Volume, Callable[..., Any]]]:
    """A volume, and a container that has it."""
    if sys.platform != "linux" and request.param != "path_rewriting":
        pytest.skip("needs Linux")
    with (
        Emulator(commit_every_s=3600, sandbox_mode=request.param) as emulator,
        connected(emulator),
    ):
        volume = new_volume()
        with containers({"/data": volume}) as container:
            yield volume, container("a")


def do(top: Path, step: Step) -> None:
    """Do one thing in a folder."""
    action, path, other = step
    at, beside = top / path, top / other
    if action == "write":
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(f"{path} {other}")
    elif action == "append":
        with at.open("r+") as file:
            file.seek(0, os.SEEK_END)
            file.write("more")
    elif action == "make folder":
        at.mkdir(parents=True)
    elif action == "delete" and at.is_dir() and not at.is_symlink():
        shutil.rmtree(at)
    elif action == "delete":
        at.unlink()
    elif action == "rename":
        at.rename(beside)
    elif action == "link":
        at.symlink_to(other)
    elif action == "change mode":
        at.chmod(0o700, follow_symlinks=False) if at.is_symlink() else at.chmod(0o700)


def do_all(name: str, steps: list[Step]) -> Tree:
    """In a container: do the same in the volume and in a plain folder; return the latter."""
    volume, plain = Path(os.environ["DATA"], name), Path(".plain", name).absolute()
    for top in (volume, plain):
        top.mkdir(parents=True, exist_ok=True)
    for step in steps:
        try:
            do(volume, step)
        except (OSError, NotImplementedError):
            # not possible here, or (renaming in a user namespace) not on a volume
            continue
        do(plain, step)
    found: Tree = {}
    for each in plain.rglob("*"):
        content = None if each.is_dir() else each.read_text() if each.is_file() else ""
        content = f"-> {each.readlink()}" if each.is_symlink() else content
        found[each.relative_to(plain).as_posix()] = content
    return found


def committed(volume: modal.Volume, name: str, expected: Tree) -> Tree:
    """Return what a volume holds, with links (which a client can't read) as expected."""
    found: Tree = {}
    for entry in volume.iterdir(name):
        path = entry.path.removeprefix(f"{name}/")
        if entry.type == FileEntryType.FILE:
            found[path] = b"".join(volume.read_file(entry.path)).decode()
        elif entry.type == FileEntryType.SYMLINK:
            found[path] = expected.get(path) or "a link"
        else:
            found[path] = None
    return found


paths = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
actions = st.sampled_from(
    ["write", "write", "append", "make folder", "delete", "rename", "rename", "link", "change mode"]
)
rounds = st.lists(
    st.tuples(
        st.lists(st.tuples(actions, paths, paths), max_size=8), st.sampled_from([commit, reload])
    ),
    min_size=1,
    max_size=4,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rounds=rounds)
def test_a_commit_is_what_the_container_did(
    shared: tuple[modal.Volume, Callable[..., Any]],
    rounds: list[tuple[list[Step], Callable[..., None]]],
) -> None:
    volume, run = shared
    name = f"example-{next(_numbers)}"
    for steps, show in rounds:
        expected = run(do_all, name, steps)
        run(show, volume)
        assert committed(volume, name, expected) == expected
