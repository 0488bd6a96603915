"""Volumes as a program sees them through `modal.Volume`."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import modal
import pytest
from modal.exception import AlreadyExistsError, InvalidError, NotFoundError
from modal.types import FileEntryType

pytestmark = pytest.mark.usefixtures("modal_emulator")

BLOCK = 8 * 1024 * 1024
_numbers = itertools.count()


@pytest.fixture(params=[1, 2])
def volume(request: pytest.FixtureRequest) -> modal.Volume:
    """An empty volume of each version."""
    name = f"volume-{request.param}-{next(_numbers)}"
    return modal.Volume.from_name(name, create_if_missing=True, version=request.param)


def put(volume: modal.Volume, files: dict[str, bytes], *, force: bool = False) -> None:
    with volume.batch_upload(force=force) as batch:
        for path, content in files.items():
            batch.put_file(io.BytesIO(content), path)


def read(volume: modal.Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def paths(volume: modal.Volume, path: str = "/") -> list[str]:
    return [entry.path for entry in volume.iterdir(path)]


def test_uploaded_files_are_listed_and_read(volume: modal.Volume, tmp_path: Path) -> None:
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "one.txt").write_text("one")
    (tmp_path / "folder" / "deep" / "two.txt").write_text("two")
    with volume.batch_upload() as batch:
        batch.put_directory(tmp_path / "folder", "/data")
        batch.put_file(io.BytesIO(b""), "empty")

    assert paths(volume) == ["data", "data/deep", "data/deep/two.txt", "data/one.txt", "empty"]
    assert [entry.path for entry in volume.listdir("data")] == ["data/deep", "data/one.txt"]
    folder, file = volume.listdir("/data")
    assert (folder.type, file.type) == (FileEntryType.DIRECTORY, FileEntryType.FILE)
    assert file.size == 3
    assert file.mtime > 1_700_000_000
    assert [entry.path for entry in volume.listdir("data/one.txt")] == ["data/one.txt"]
    assert read(volume, "data/deep/two.txt") == b"two"
    assert read(volume, "/empty") == b""


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"\0" * 100, id="only zeros"),
        pytest.param(b"x" + b"\0" * (BLOCK - 1), id="zeros up to the end of a block"),
        pytest.param(b"ab" * (BLOCK // 2) + b"tail\0\0", id="zeros at the end of a second block"),
        pytest.param(b"\0" * BLOCK + b"z", id="a first block of zeros"),
        pytest.param(b"y" * (2 * BLOCK), id="two whole blocks"),
    ],
)
def test_large_contents_survive_byte_by_byte(volume: modal.Volume, content: bytes) -> None:
    put(volume, {"large": content})

    assert read(volume, "large") == content
    received = io.BytesIO()
    assert volume.read_file_into_fileobj("large", received) == len(content)
    assert received.getvalue() == content
    assert volume.listdir("large")[0].size == len(content)


def test_an_upload_over_a_file_needs_force(volume: modal.Volume) -> None:
    put(volume, {"kept": b"first"})

    with pytest.raises(FileExistsError, match="kept"):
        put(volume, {"kept": b"second", "new": b"n"})
    assert paths(volume) == ["kept"]
    assert read(volume, "kept") == b"first"

    put(volume, {"kept": b"second"}, force=True)
    assert read(volume, "kept") == b"second"


def test_a_reader_gets_the_file_as_it_was_when_it_asked(volume: modal.Volume) -> None:
    # more blocks than the client asks for ahead
    first = bytes([1]) * (6 * BLOCK)
    put(volume, {"file": first})

    chunks = iter(volume.read_file("file"))
    beginning = next(chunks)
    put(volume, {"file": b"replaced"}, force=True)

    assert beginning + b"".join(chunks) == first
    assert read(volume, "file") == b"replaced"


def test_removing_a_folder_needs_recursive(volume: modal.Volume) -> None:
    put(volume, {"folder/a": b"a", "folder/b": b"b", "other": b"o"})

    volume.remove_file("folder/a")
    with pytest.raises(InvalidError, match="recursive"):
        volume.remove_file("folder")
    assert paths(volume) == ["folder", "folder/b", "other"]

    volume.remove_file("/folder", recursive=True)
    assert paths(volume) == ["other"]
    with pytest.raises(FileNotFoundError, match="folder"):
        volume.remove_file("folder", recursive=True)


def test_copies_follow_cp(volume: modal.Volume) -> None:
    put(volume, {"a": b"a", "b": b"b", "into/x": b"x"})

    volume.copy_files(["a"], "renamed")
    volume.copy_files(["a", "/b"], "into")
    assert read(volume, "renamed") == b"a"
    assert paths(volume, "into") == ["into/a", "into/b", "into/x"]

    volume.copy_files(["b"], "into/a")
    assert read(volume, "into/a") == b"b"
    with pytest.raises(InvalidError, match="not a folder"):
        volume.copy_files(["a", "b"], "renamed")
    with pytest.raises(NotFoundError, match="missing"):
        volume.copy_files(["missing"], "into")
    with pytest.raises(InvalidError, match="recursive"):
        volume.copy_files(["into"], "copy")


def test_a_version_2_volume_copies_folders() -> None:
    volume = modal.Volume.from_name("copies-folders", create_if_missing=True, version=2)
    put(volume, {"from/deep/a": b"a", "from/b": b"b", "existing/b": b"old"})

    volume.copy_files(["from"], "to", recursive=True)
    volume.copy_files(["from"], "existing", recursive=True)
    volume.copy_files(["from/b"], "existing/b", recursive=True)

    assert paths(volume, "to") == ["to/b", "to/deep", "to/deep/a"]
    assert read(volume, "existing/from/deep/a") == b"a"
    assert read(volume, "existing/b") == b"b"
    with pytest.raises(InvalidError, match="into itself"):
        volume.copy_files(["from"], "from/deep", recursive=True)


def test_a_missing_path_is_said_to_be_missing(volume: modal.Volume) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        read(volume, "nothing")
    with pytest.raises(NotFoundError, match="nothing/here"):
        volume.listdir("nothing/here")


def test_a_file_is_not_a_folder_and_a_folder_not_a_file(volume: modal.Volume) -> None:
    put(volume, {"file": b"f", "folder/x": b"x"})

    with pytest.raises(InvalidError, match="is a file in the volume"):
        put(volume, {"file/below": b"b"})
    with pytest.raises(InvalidError, match="is a folder in the volume"):
        put(volume, {"folder": b"b"}, force=True)
    with pytest.raises(InvalidError, match="'folder' is not a file"):
        read(volume, "folder")


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/../secret", "..", "a/.."])
def test_no_operation_leaves_the_volume(volume: modal.Volume, path: str) -> None:
    put(volume, {"a/b": b"b"})
    operations: list[Callable[[], object]] = [
        lambda: put(volume, {path: b"x"}),
        lambda: read(volume, path),
        lambda: volume.listdir(path),
        lambda: volume.remove_file(path, recursive=True),
        lambda: volume.copy_files([path], "copy"),
        lambda: volume.copy_files(["a/b"], path),
    ]
    for operation in operations:
        with pytest.raises(InvalidError, match=r"'\.\.'"):
            operation()
    assert paths(volume) == ["a", "a/b"]


def test_a_name_finds_the_volume_until_it_is_renamed_or_deleted(volume: modal.Volume) -> None:
    put(volume, {"file": b"kept"})
    old, new = volume.name or "", f"renamed-{next(_numbers)}"

    modal.Volume.rename(old, new)
    with pytest.raises(NotFoundError, match=f"Volume '{old}' not found"):
        modal.Volume.from_name(old).hydrate()
    renamed = modal.Volume.from_name(new)
    assert read(renamed, "file") == b"kept"
    assert read(modal.Volume.from_id(renamed.object_id), "file") == b"kept"

    modal.Volume.objects.delete(new)
    with pytest.raises(NotFoundError):
        renamed.listdir("/")
    with pytest.raises(NotFoundError):
        modal.Volume.from_name(new).hydrate()
    modal.Volume.objects.delete(new, allow_missing=True)


def test_a_name_is_given_once() -> None:
    modal.Volume.objects.create("given-once")
    modal.Volume.objects.create("taken", version=2)

    with pytest.raises(AlreadyExistsError, match="given-once"):
        modal.Volume.objects.create("given-once")
    with pytest.raises(AlreadyExistsError, match="taken"):
        modal.Volume.rename("given-once", "taken")
    with pytest.raises(InvalidError, match="version v2"):
        modal.Volume.from_name("taken", version=1).hydrate()
    modal.Volume.objects.create("given-once", allow_existing=True)


def test_volumes_are_listed_newest_first() -> None:
    for name in ("list-1", "list-2", "list-3"):
        modal.Volume.objects.create(name)

    names = [volume.name for volume in modal.Volume.objects.list()]
    assert [name for name in names if (name or "").startswith("list-")] == [
        "list-3",
        "list-2",
        "list-1",
    ]
    assert [volume.name for volume in modal.Volume.objects.list(max_objects=1)] == ["list-3"]
    oldest = modal.Volume.from_name("list-1").hydrate().info()
    # a datetime has microseconds only
    before = oldest.created_at - timedelta(milliseconds=1)
    older = modal.Volume.objects.list(created_before=before)
    assert not {"list-1", "list-2", "list-3"} & {volume.name for volume in older}


def test_an_environment_has_its_own_names() -> None:
    modal.environments.create_environment("elsewhere")
    modal.Volume.objects.create("here-and-there")

    with pytest.raises(NotFoundError, match="elsewhere"):
        modal.Volume.from_name("here-and-there", environment_name="elsewhere").hydrate()


@pytest.mark.parametrize("version", [1, 2])
def test_an_ephemeral_volume_works_without_a_name(version: int) -> None:
    before = [volume.object_id for volume in modal.Volume.objects.list()]
    with modal.Volume.ephemeral(version=version) as volume:
        put(volume, {"file": b"content"})
        assert read(volume, "file") == b"content"
        assert [volume.object_id for volume in modal.Volume.objects.list()] == before


def test_commit_and_reload_are_for_containers(volume: modal.Volume) -> None:
    with pytest.raises(RuntimeError, match="only be called in a container"):
        volume.commit()
    with pytest.raises(RuntimeError, match="only be called in a container"):
        volume.reload()
