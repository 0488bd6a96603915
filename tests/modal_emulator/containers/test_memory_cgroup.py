"""A memory limit that the kernel enforces."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modal_emulator.containers.memory_cgroup import MemoryCgroup

LIMIT = 64 << 20
JOINS_AND_ALLOCATES = (
    "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()));"
    "used = bytearray(int(sys.argv[2]) << 20)"
)


@pytest.fixture
def cgroup() -> MemoryCgroup:
    """A cgroup with a limit of 64 MiB."""
    made = MemoryCgroup.create("test", LIMIT)
    if made is None:
        pytest.skip("this machine has no cgroup that can be written")
    return made


def allocate(cgroup: MemoryCgroup, mib: int) -> int:
    """Return the exit code of a process in the cgroup that uses so much."""
    arguments = [str(cgroup.joined_by_writing), str(mib)]
    return subprocess.run([sys.executable, "-S", "-c", JOINS_AND_ALLOCATES, *arguments]).returncode


def test_a_process_that_uses_more_than_the_limit_is_killed(cgroup: MemoryCgroup) -> None:
    folder = cgroup.joined_by_writing.parent
    assert (allocate(cgroup, 16), cgroup.has_killed()) == (0, False)
    assert (allocate(cgroup, 256), cgroup.has_killed()) == (-signal.SIGKILL, True)
    cgroup.delete()
    assert (folder.exists(), cgroup.has_killed()) == (False, False)


def test_a_machine_without_cgroups_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modal_emulator.containers.memory_cgroup._parents", lambda: ())
    assert MemoryCgroup.create("test", LIMIT) is None


def test_what_is_no_memory_cgroup_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modal_emulator.containers.memory_cgroup._parents", lambda: (tmp_path,))
    assert MemoryCgroup.create("test", LIMIT) is None
    assert list(tmp_path.iterdir()) == []
