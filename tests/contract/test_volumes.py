"""Volumes: what a commit shows to whom, and when, as Modal documents it."""

from __future__ import annotations

from types import ModuleType

import modal
import pytest
from modal.exception import NotFoundError

from tests.support.waiting import wait_until

documented = pytest.mark.documented
_PAGE = "guide/volumes"


@documented(_PAGE, "A new container sees the latest state of the volume.")
def test_a_new_container_sees_what_was_committed(running: ModuleType, key: str) -> None:
    running.write.remote(key, "kept", commit=True)
    assert running.read.with_options(max_containers=1).remote(key) == "kept"


@documented(_PAGE, "A running container sees another one's commit after reload(), not before.")
def test_a_commit_is_seen_after_a_reload_only(
    running: ModuleType, notes: modal.Dict, key: str
) -> None:
    call = running.watch.spawn(notes, key, key)
    wait_until(lambda: notes.get(f"{key}-started") is True, "what it waits for", timeout_s=60)
    running.write.remote(key, "new", commit=True)
    notes[f"{key}-committed"] = True
    assert call.get(timeout=60) == [None, None, "new"]


@documented(_PAGE, "The client reads what was committed.")
def test_the_client_sees_a_commit(running: ModuleType, key: str) -> None:
    running.write.remote(key, "seen", commit=True)
    assert b"".join(running.volume.read_file(key)) == b"seen"


@documented(_PAGE, "Writes are committed in the background, and when the container ends.")
def test_a_write_is_committed_without_asking(running: ModuleType, key: str) -> None:
    running.write.remote(key, "kept", commit=False)
    wait_until(
        lambda: key in {entry.path for entry in running.volume.listdir("/")},
        "what it waits for",
        timeout_s=90,
    )


@documented("reference/modal.Volume", "The last write to a file wins.")
def test_the_last_writer_of_a_file_wins(running: ModuleType, key: str) -> None:
    running.write.remote(key, "first", commit=True)
    running.write.remote(key, "second", commit=True)
    assert b"".join(running.volume.read_file(key)) == b"second"


@documented("reference/modal.Volume", "reload() with open files of the volume is an error.")
def test_a_reload_with_an_open_file_is_an_error(running: ModuleType, key: str) -> None:
    assert "open" in running.reload_with_an_open_file.remote(key)


@documented("reference/modal.Volume", "A read-only volume can't be written to.")
def test_a_read_only_volume_refuses_writes(running: ModuleType, key: str) -> None:
    assert running.write_read_only.remote(key) in ("OSError", "PermissionError")


@documented("reference/modal.Volume", "Without create_if_missing, a missing volume is an error.")
def test_a_missing_volume_is_not_found(service: None, key: str) -> None:
    with pytest.raises(NotFoundError):
        modal.Volume.from_name(f"contract-{key}").hydrate()
