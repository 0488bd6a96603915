"""What a container learns from the inodes of a volume's files."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.container_shell import commit, containers, contents, new_volume, put, tree, write
from tests.support.waiting import wait_until

register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.slow

LARGE_BYTES = 70 * 1024 * 1024


@pytest.fixture(scope="module", params=["namespaces", "user_namespaces", "path_rewriting"])
def mode(request: pytest.FixtureRequest) -> Any:
    if sys.platform != "linux" and request.param != "path_rewriting":
        pytest.skip("needs Linux")
    return request.param


@pytest.fixture(scope="module")
def emulator(mode: Any) -> Iterator[Emulator]:
    with Emulator(commit_every_s=3600.0, sandbox_mode=mode) as emulator, connected(emulator):
        yield emulator


@pytest.fixture
def volume(emulator: Emulator) -> modal.Volume:
    return new_volume()


def write_large(path: str, seed: str) -> None:
    """In a container: write a large file of the first volume."""
    line = hashlib.sha256(seed.encode()).digest()
    Path(os.environ["DATA"], path).write_bytes(line * (LARGE_BYTES // len(line)))


def rename(old: str, new: str) -> None:
    """In a container: rename a folder of the first volume, or do what is left to do."""
    import shutil

    shutil.move(Path(os.environ["DATA"], old), Path(os.environ["DATA"], new))


def inodes() -> dict[str, tuple[int, int, int]]:
    """In a container: return size, inode and number of hard links of the first volume's files."""
    top = Path(os.environ["DATA"])
    found = {each.relative_to(top).as_posix(): each.stat() for each in top.rglob("*")}
    return {
        path: (status.st_size, status.st_ino, status.st_nlink)
        for path, status in found.items()
        if stat.S_ISREG(status.st_mode)
    }


def digest(path: str) -> str:
    """In a container: return the digest of a file of the first volume."""
    return hashlib.sha256(Path(os.environ["DATA"], path).read_bytes()).hexdigest()


def test_every_file_has_one_hard_link(volume: modal.Volume) -> None:
    put(
        volume, {"uploaded": b"1" * LARGE_BYTES, "old/small": b"1", "old/large": b"2" * LARGE_BYTES}
    )
    with containers({"/data": volume}) as container:
        writer = container("writer")
        writer(write_large, "committed", "a")
        writer(rename, "old", "new")
        writer(commit, volume)
        # a download shares its file with the volume
        assert next(iter(volume.read_file("uploaded")))
        for reader in (container("reader"), container("another")):
            found = reader(inodes)
            assert {path: (size, links) for path, (size, _, links) in found.items()} == {
                "uploaded": (LARGE_BYTES, 1),
                "committed": (LARGE_BYTES, 1),
                "new/small": (1, 1),
                "new/large": (LARGE_BYTES, 1),
            }


def test_a_large_file_is_not_copied_again_because_another_file_changed(
    volume: modal.Volume, emulator: Emulator, mode: str
) -> None:
    put(volume, {"large": b"1" * LARGE_BYTES})
    seen = []
    for number in range(3):
        with containers({"/data": volume}) as container:
            seen.append(container("a")(inodes)["large"])
            container("a")(write, f"file-{number}", "1")
        wait_until(lambda: all(each.state == "ended" for each in emulator.containers()), "the end")
    assert len(contents(volume)) == 4
    assert {(size, links) for size, _, links in seen} == {(LARGE_BYTES, 1)}
    if mode != "path_rewriting":
        assert len({inode for _, inode, _ in seen}) == 1


def test_a_large_file_that_was_replaced_is_seen_as_it_is_now(volume: modal.Volume) -> None:
    with containers({"/data": volume}) as writer:
        for seed in ("a", "b", "c"):
            writer("a")(write_large, "large", seed)
            writer("a")(commit, volume)
            with containers({"/data": volume}) as container:
                assert container("a")(digest, "large") == writer("a")(digest, "large")


def make_pipe() -> None:
    """In a container: make a pipe in the first volume."""
    os.mkfifo(Path(os.environ["DATA"], "pipe"))


def test_a_pipe_in_a_volume_disturbs_no_later_container(volume: modal.Volume) -> None:
    with containers({"/data": volume}) as container:
        container("a")(write, "file", "1")
        container("a")(make_pipe)
        container("a")(commit, volume)
        assert container("b")(tree) == {"file": "1"}
