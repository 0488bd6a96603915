"""When containers see what others write to a volume, in each way of isolating them."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import InvalidError, ResourceExhaustedError
from modal.types import FileEntryType

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.support.container_shell import (
    commit,
    containers,
    contents,
    delete,
    new_volume,
    put,
    reload,
    tree,
    write,
)

register_pickle_by_value(sys.modules[__name__])

NEVER_S = 3600.0


@pytest.fixture(
    scope="module",
    params=[
        "namespaces",
        pytest.param("user_namespaces", marks=pytest.mark.slow),
        pytest.param("path_rewriting", marks=pytest.mark.slow),
    ],
)
def mode(request: pytest.FixtureRequest) -> Any:
    if sys.platform != "linux" and request.param != "path_rewriting":
        pytest.skip("needs Linux")
    return request.param


@pytest.fixture(scope="module")
def emulator(mode: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """A server that commits only when it is asked to."""
    state_dir = tmp_path_factory.mktemp("state")
    with (
        Emulator(state_dir, commit_every_s=NEVER_S, sandbox_mode=mode) as emulator,
        connected(emulator),
    ):
        yield emulator


@pytest.fixture
def volume(emulator: Emulator) -> modal.Volume:
    return new_volume()


def test_a_write_is_seen_after_commit_and_reload_only(volume: modal.Volume) -> None:
    put(volume, {"before": b"0"})
    with containers({"/data": volume}) as container:
        writer, reader = container("writer"), container("reader")
        assert reader(tree) == {"before": "0"}

        writer(write, "folder/new", "1")
        writer(write, "before", "changed")
        assert writer(tree) == {"before": "changed", "folder/new": "1"}
        assert contents(volume) == {"before": b"0"}

        writer(commit, volume)
        assert contents(volume) == {"before": b"changed", "folder/new": b"1"}
        assert reader(tree) == {"before": "0"}

        reader(reload, volume)
        assert reader(tree) == {"before": "changed", "folder/new": "1"}
        assert container("started later")(tree) == {"before": "changed", "folder/new": "1"}


def test_a_clients_upload_is_seen_after_reload_only(volume: modal.Volume) -> None:
    put(volume, {"kept": b"1", "removed": b"1"})
    with containers({"/data": volume}) as container:
        run = container("a")
        assert run(tree) == {"kept": "1", "removed": "1"}

        put(volume, {"kept": b"2", "added": b"2"})
        volume.remove_file("removed")
        assert run(tree) == {"kept": "1", "removed": "1"}

        run(reload, volume)
        assert run(tree) == {"kept": "2", "added": "2"}


def test_of_two_commits_the_last_writer_of_a_file_wins(volume: modal.Volume) -> None:
    with containers({"/data": volume}) as container:
        first, second = container("first"), container("second")
        first(write, "shared", "first")
        second(write, "shared", "second")
        first(write, "folder/of-first", "1")
        second(write, "folder/of-second", "2")

        first(commit, volume)
        second(commit, volume)
        both = {"shared": b"second", "folder/of-first": b"1", "folder/of-second": b"2"}
        assert contents(volume) == both

        # It has not written since: its old content must not come back.
        first(commit, volume)
        assert contents(volume) == both

        first(write, "shared", "first again")
        first(commit, volume)
        assert contents(volume) == both | {"shared": b"first again"}


def test_deletions_spare_what_others_have_added(volume: modal.Volume) -> None:
    put(volume, {"file": b"f", "folder/old": b"o", "folder/deep/old": b"o", "replaced/old": b"o"})
    with containers({"/data": volume}) as container:
        deleter, other = container("deleter"), container("other")
        deleter(tree)
        other(write, "folder/new", "n")
        other(write, "replaced/new", "n")
        other(commit, volume)

        deleter(delete, "file")
        deleter(delete, "folder")
        deleter(delete, "replaced")
        deleter(write, "replaced/mine", "m")
        deleter(commit, volume)

        left = {"folder/new": b"n", "replaced/new": b"n", "replaced/mine": b"m"}
        assert contents(volume) == left
        assert [entry.path for entry in volume.listdir("folder")] == ["folder/new"]

        put(volume, {"file": b"again"})
        deleter(delete, "replaced/mine")
        deleter(commit, volume)
        assert contents(volume) == {
            "file": b"again",
            "folder/new": b"n",
            "replaced/new": b"n",
        }


def test_a_file_may_become_a_folder_and_a_folder_a_file(volume: modal.Volume) -> None:
    put(volume, {"was-file": b"f", "was-folder/x": b"x"})
    with containers({"/data": volume}) as container:
        run = container("a")
        run(delete, "was-file")
        run(write, "was-file/now", "folder")
        run(delete, "was-folder")
        run(write, "was-folder", "now a file")
        run(commit, volume)

        assert contents(volume) == {"was-file/now": b"folder", "was-folder": b"now a file"}
        assert container("b")(tree) == {"was-file/now": "folder", "was-folder": "now a file"}


def rename(old: str, new: str) -> int:
    """In a container: rename, and return the number of the error, if any."""
    top = Path(os.environ["DATA"])
    try:
        (top / old).rename(top / new)
    except OSError as error:
        return error.errno or 0
    return 0


def test_renamed_folders_keep_their_files(volume: modal.Volume, mode: str) -> None:
    put(volume, {"a/deep/x": b"x", "a/y": b"y"})
    with containers({"/data": volume}) as container:
        run = container("a")
        run(write, "fresh/z", "z")
        assert run(rename, "fresh", "named") == 0
        renamed = run(rename, "a", "b")
        if mode == "user_namespaces":
            # The kernel doesn't allow it there, and programs fall back to copying.
            assert renamed == errno.EXDEV
            return
        assert renamed == 0
        run(write, "b/y", "changed")
        run(delete, "b/deep")
        run(commit, volume)
        assert contents(volume) == {"b/y": b"changed", "named/z": b"z"}

        assert run(rename, "b", "c") == 0
        run(commit, volume)
        assert contents(volume) == {"c/y": b"changed", "named/z": b"z"}


def append(path: str, text: str) -> None:
    """In a container: append to a file of the first volume in place."""
    with Path(os.environ["DATA"], path).open("a") as file:
        file.write(text)


def test_writing_in_place_changes_nothing_for_others(volume: modal.Volume) -> None:
    put(volume, {"log": b"1"})
    with containers({"/data": volume}) as container:
        writer, reader = container("writer"), container("reader")
        assert reader(tree) == {"log": "1"}
        for line in ("2", "3"):
            writer(append, "log", line)
            writer(commit, volume)
        writer(append, "log", "4")

        assert contents(volume) == {"log": b"123"}
        assert reader(tree) == {"log": "1"}
        reader(reload, volume)
        assert reader(tree) == {"log": "123"}


def make_model_cache() -> None:
    """In a container: lay a model out as huggingface_hub does."""
    model = Path(os.environ["DATA"], "hub", "models--tiny--model")
    snapshot = model / "snapshots" / "c0ffee"
    for folder in (model / "blobs", model / "refs", snapshot / "unet"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text("c0ffee")
    for name, blob in (("config.json", "b1"), ("unet/weights", "b2")):
        (model / "blobs" / blob).write_text(name * 100)
        up = "/".join([".."] * (2 + name.count("/")))
        (snapshot / name).symlink_to(f"{up}/blobs/{blob}")


def scan_model_cache() -> dict[str, Any]:
    """In a container: return what huggingface_hub finds, and the links as they are."""
    from huggingface_hub import scan_cache_dir

    hub = Path(os.environ["DATA"], "hub")
    found = scan_cache_dir(hub)
    (repo,) = found.repos
    (revision,) = repo.revisions
    links = [each for each in hub.rglob("*") if each.is_symlink()]
    return {
        "warnings": [str(each) for each in found.warnings],
        "files": sorted((each.file_name, each.size_on_disk) for each in revision.files),
        "refs": sorted(revision.refs),
        "size": repo.size_on_disk,
        "links": sorted(str(each.readlink()) for each in links),
    }


def test_the_links_of_a_model_cache_survive(volume: modal.Volume) -> None:
    expected = {
        "warnings": [],
        "files": [("config.json", 1100), ("weights", 1200)],
        "refs": ["main"],
        "size": 2300,
        "links": ["../../../blobs/b2", "../../blobs/b1"],
    }
    with containers({"/data": volume}) as container:
        writer, reader = container("writer"), container("reader")
        assert reader(tree) == {}
        writer(make_model_cache)
        assert writer(scan_model_cache) == expected
        writer(commit, volume)
        assert writer(scan_model_cache) == expected
        reader(reload, volume)
        assert reader(scan_model_cache) == expected
        assert container("started later")(scan_model_cache) == expected

    snapshot = "hub/models--tiny--model/snapshots/c0ffee"
    types = {entry.path: entry.type for entry in volume.listdir(snapshot)}
    assert types[f"{snapshot}/config.json"] == FileEntryType.SYMLINK
    through_link = b"".join(volume.read_file(f"{snapshot}/config.json"))
    assert through_link == b"config.json" * 100


def link(path: str, target: str) -> None:
    """In a container: make a link in the first volume."""
    Path(os.environ["DATA"], path).symlink_to(target)


def test_a_link_out_of_the_volume_is_kept_and_never_followed(
    volume: modal.Volume, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("of the machine")
    with containers({"/data": volume}) as container:
        run = container("a")
        run(link, "absolute", str(tmp_path))
        run(link, "upwards", "../../../../../.." + str(tmp_path))
        run(link, "loop", "loop")
        run(commit, volume)

    for name in ("absolute", "upwards"):
        with pytest.raises(InvalidError, match="out"):
            b"".join(volume.read_file(f"{name}/secret"))
        with pytest.raises(InvalidError, match="out"):
            put(volume, {f"{name}/planted": b"x"})
        with pytest.raises(InvalidError, match="out"):
            volume.copy_files([f"{name}/secret"], "copy")
        with pytest.raises(InvalidError, match="out"):
            volume.remove_file(f"{name}/secret")
    with pytest.raises(InvalidError, match="more than 40 links"):
        volume.listdir("loop")
    assert [each.name for each in tmp_path.iterdir()] == ["secret"]

    assert {entry.type for entry in volume.listdir("/")} == {FileEntryType.SYMLINK}
    volume.remove_file("absolute")
    assert [entry.path for entry in volume.listdir("/")] == ["loop", "upwards"]


def hold_open(path: str) -> None:
    """In a container: leave a file of the first volume open."""
    file = Path(os.environ["DATA"], path).open()  # noqa: SIM115 - `release` closes it
    sys.held = file  # type: ignore[attr-defined]


def release() -> None:
    """In a container: close the file that was left open."""
    sys.held.close()  # type: ignore[attr-defined]


def test_reload_fails_while_a_file_is_open(volume: modal.Volume) -> None:
    put(volume, {"file": b"1"})
    with containers({"/data": volume}) as container:
        run = container("a")
        run(hold_open, "file")
        put(volume, {"file": b"2"})
        with pytest.raises(RuntimeError, match=r"there are open files.*file is open"):
            run(reload, volume)
        assert run(tree) == {"file": "1"}

        run(release)
        run(reload, volume)
        assert run(tree) == {"file": "2"}


def test_reload_commits_what_the_container_has_written(volume: modal.Volume) -> None:
    with containers({"/data": volume}) as container:
        run = container("a")
        run(write, "mine", "m")
        put(volume, {"theirs": b"t"})
        run(reload, volume)
        assert run(tree) == {"mine": "m", "theirs": "t"}
    assert contents(volume) == {"mine": b"m", "theirs": b"t"}


def test_a_container_commits_when_it_ends(volume: modal.Volume) -> None:
    with containers({"/data": volume}) as container:
        container("a")(write, "file", "written last")
        assert contents(volume) == {}
    deadline = time.monotonic() + 60
    while not contents(volume) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert contents(volume) == {"file": b"written last"}


def write_error(path: str, text: str) -> str:
    """In a container: write, and return the error, if any."""
    try:
        write(path, text)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


def test_a_read_only_volume_is_never_changed(volume: modal.Volume, mode: str) -> None:
    put(volume, {"file": b"1"})
    read_only = volume.with_mount_options(read_only=True)
    with containers({"/data": read_only}) as container:
        run = container("a")
        assert run(tree) == {"file": "1"}
        assert run(write_error, "file", "2") == ("" if mode == "path_rewriting" else "EROFS")
        run(commit, volume)
        put(volume, {"file": b"3"})
        run(reload, volume)
        assert run(tree) == {"file": "3"}
    assert contents(volume) == {"file": b"3"}


def test_a_sub_path_is_a_volume_of_its_own_to_a_container(volume: modal.Volume) -> None:
    put(volume, {"users/me/mine": b"m", "users/you/yours": b"y"})
    mine = volume.with_mount_options(sub_path="/users/me")
    with containers({"/data": mine}) as container:
        run = container("a")
        assert run(tree) == {"mine": "m"}
        run(write, "more", "2")
        run(delete, "mine")
        run(commit, volume)
        assert contents(volume) == {"users/me/more": b"2", "users/you/yours": b"y"}
        put(volume, {"users/me/added": b"a"})
        run(reload, volume)
        assert run(tree) == {"more": "2", "added": "a"}

    odd = "new, odd:folder"
    with containers({"/data": volume.with_mount_options(sub_path=odd)}) as container:
        run = container("a")
        run(write, "file", "1")
        run(commit, volume)
    assert contents(volume)[f"{odd}/file"] == b"1"


def test_a_full_volume_takes_no_more(volume: modal.Volume, emulator: Emulator, mode: str) -> None:
    put(volume, {"first": b"1" * 100_000})
    emulator.limit_volume(volume.name or "", max_bytes=300_000)
    try:
        with containers({"/data": volume}) as container:
            run = container("a")
            run(write, "fits", "2" * 50_000)
            run(commit, volume)
            if mode == "path_rewriting":
                run(write, "large", "3" * 400_000)
                with pytest.raises(ResourceExhaustedError, match="No space left"):
                    run(commit, volume)
            else:
                assert run(write_error, "large", "3" * 400_000) == "ENOSPC"
            run(delete, "large")
            with pytest.raises(ResourceExhaustedError, match="No space left"):
                put(volume, {"uploaded": b"4" * 400_000})
            # what is replaced makes room
            put(volume, {"first": b"1" * 240_000})
            assert sorted(contents(volume)) == ["first", "fits"]
            run(delete, "first")
            run(commit, volume)
            put(volume, {"uploaded": b"4" * 200_000})
    finally:
        emulator.clear_faults()
    put(volume, {"large": b"5" * 400_000})
    assert sorted(contents(volume)) == ["fits", "large", "uploaded"]


def test_a_volume_can_run_out_of_inodes(
    volume: modal.Volume, emulator: Emulator, mode: str
) -> None:
    put(volume, {"0": b"", "1": b""})
    emulator.limit_volume(volume.name or "", max_files=5)
    try:
        with pytest.raises(ResourceExhaustedError, match="No inodes left"):
            put(volume, {str(number): b"" for number in range(2, 8)})
        with containers({"/data": volume}) as container:
            run = container("a")
            errors = [run(write_error, f"new-{number}", "") for number in range(20)]
            if mode == "path_rewriting":
                with pytest.raises(ResourceExhaustedError, match="No inodes left"):
                    run(commit, volume)
            else:
                assert errors[0] == ""
                assert errors[-1] == "ENOSPC"
    finally:
        emulator.clear_faults()
