"""What a server keeps from one start to the next, and what it doesn't."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import modal
import pytest
from modal.exception import NotFoundError

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.container_shell import commit, containers, contents, write


@contextmanager
def server(state_dir: Path) -> Iterator[None]:
    with Emulator(state_dir) as emulator, connected(emulator):
        yield


def test_volumes_secrets_dicts_and_queues_survive_a_restart(tmp_path: Path) -> None:
    with server(tmp_path):
        for version in (1, 2):
            volume = modal.Volume.from_name(f"v{version}", create_if_missing=True, version=version)
            with volume.batch_upload() as batch:
                batch.put_file(io.BytesIO(b"uploaded"), "folder/file")
        volume = modal.Volume.from_name("v2").hydrate()
        with containers({"/data": volume}) as container:
            container("a")(write, "by-container", "committed")
            container("a")(commit, volume)
        modal.Secret.objects.create("secret", {"KEY": "value"})
        modal.Dict.from_name("dict", create_if_missing=True)["key"] = "value"
        modal.Queue.from_name("queue", create_if_missing=True).put_many([1, 2, 3], partition="p")
        volume_id = modal.Volume.from_name("v1").hydrate().object_id
        modal.Volume.rename("v1", "renamed")
        with modal.Volume.ephemeral() as ephemeral:
            ephemeral_id = ephemeral.object_id

    with server(tmp_path):
        renamed = modal.Volume.from_name("renamed", version=1).hydrate()
        assert renamed.object_id == volume_id
        assert contents(renamed) == {"folder/file": b"uploaded"}
        assert contents(modal.Volume.from_name("v2", version=2)) == {
            "by-container": b"committed",
            "folder/file": b"uploaded",
        }
        modal.Secret.from_name("secret", required_keys=["KEY"]).hydrate()
        assert modal.Dict.from_name("dict")["key"] == "value"
        queue = modal.Queue.from_name("queue")
        assert queue.get_many(3, partition="p") == [1, 2, 3]
        # its client may still be there
        assert modal.Volume.from_id(ephemeral_id).listdir("/") == []

    (tmp_path / "volumes" / volume_id / "content" / "folder" / "file").write_bytes(b"by hand")
    with server(tmp_path):
        assert contents(modal.Volume.from_name("renamed")) == {"folder/file": b"by hand"}


def test_a_server_without_a_state_folder_starts_empty() -> None:
    with Emulator() as emulator, connected(emulator):
        modal.Volume.from_name("volume", create_if_missing=True).hydrate()
    with Emulator() as emulator, connected(emulator), pytest.raises(NotFoundError):
        modal.Volume.from_name("volume").hydrate()
