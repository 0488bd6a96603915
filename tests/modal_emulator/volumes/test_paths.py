"""Any path and any sequence of operations on a volume, against a plain model of it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import modal
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from modal.exception import InvalidError

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected

_numbers = itertools.count()
SETTINGS = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

names = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0*"), min_size=1, max_size=30
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)
separators = st.sampled_from(["/", "//", "/./"])


@st.composite
def good_paths(draw: st.DrawFn) -> str:
    """Draw a path of names, written in one of the ways that mean the same."""
    parts = draw(st.lists(names, min_size=1, max_size=4))
    start = draw(st.sampled_from(["", "/", "./", "//"]))
    return start + "".join(part + draw(separators) for part in parts[:-1]) + parts[-1]


@st.composite
def bad_paths(draw: st.DrawFn) -> str:
    """Draw a path with `..` somewhere in it."""
    parts = draw(st.lists(names | st.just(".."), max_size=4))
    parts.insert(draw(st.integers(0, len(parts))), "..")
    return draw(st.sampled_from(["", "/"])) + "/".join(parts)


@pytest.fixture(scope="module")
def state_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("outside") / "state"


@pytest.fixture(scope="module", params=[1, 2])
def version(request: pytest.FixtureRequest, state_dir: Path) -> int:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def emulator(state_dir: Path):
    with Emulator(state_dir) as emulator, connected(emulator):
        yield emulator


def new_volume(version: int) -> modal.Volume:
    name = f"paths-{next(_numbers)}"
    return modal.Volume.from_name(name, create_if_missing=True, version=version)


def put(volume: modal.Volume, path: str, content: bytes) -> None:
    with volume.batch_upload(force=True) as batch:
        batch.put_file(io.BytesIO(content), path)


@SETTINGS
@given(path=good_paths(), content=st.binary(max_size=100))
def test_every_spelling_of_a_path_means_the_same_file(
    version: int, path: str, content: bytes
) -> None:
    volume = new_volume(version)
    put(volume, path, content)

    plain = "/".join(name for name in path.split("/") if name not in ("", "."))
    assert b"".join(volume.read_file(path)) == content
    assert [entry.path for entry in volume.listdir(path)] == [plain]
    assert plain in [entry.path for entry in volume.iterdir("/")]
    volume.copy_files([path], "copied file")
    assert b"".join(volume.read_file("copied file")) == content
    volume.remove_file(path)
    with pytest.raises(FileNotFoundError):
        b"".join(volume.read_file(plain))


@SETTINGS
@given(path=bad_paths())
def test_a_path_upwards_is_always_refused(version: int, path: str, state_dir: Path) -> None:
    volume = new_volume(version)
    put(volume, "file", b"x")
    outside = sorted(state_dir.parent.iterdir())
    operations = [
        lambda: put(volume, path, b"planted"),
        lambda: b"".join(volume.read_file(path)),
        lambda: volume.listdir(path),
        lambda: volume.copy_files(["file"], path),
        lambda: volume.copy_files([path], "copy"),
        lambda: volume.remove_file(path, recursive=True),
    ]
    for operation in operations:
        with pytest.raises(InvalidError, match=r"'\.\.'"):
            operation()
    assert sorted(state_dir.parent.iterdir()) == outside
    assert [entry.path for entry in volume.listdir("/")] == ["file"]


small_paths = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map("/".join)
operations = st.lists(
    st.tuples(st.sampled_from(["put", "remove", "copy"]), small_paths, small_paths), max_size=10
)


@SETTINGS
@given(steps=operations)
def test_operations_leave_what_a_file_system_would_have(
    version: int, steps: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    volume = new_volume(version)
    model = tmp_path_factory.mktemp("model")
    for number, (operation, path, other) in enumerate(steps):
        content = str(number).encode()
        try:
            if operation == "put":
                put(volume, path, content)
            elif operation == "remove":
                volume.remove_file(path)
            else:
                volume.copy_files([path], other)
        except (InvalidError, FileNotFoundError, modal.exception.NotFoundError):
            with pytest.raises(OSError):  # noqa: PT011 - whichever the file system has for it
                apply(model, operation, path, other, content)
        else:
            apply(model, operation, path, other, content)
    expected = {
        str(each.relative_to(model)): each.read_bytes() if each.is_file() else None
        for each in model.rglob("*")
    }
    seen = {
        entry.path: b"".join(volume.read_file(entry.path)) if entry.type == 1 else None
        for entry in volume.iterdir("/")
    }
    assert seen == expected


def apply(top: Path, operation: str, path: str, other: str, content: bytes) -> None:
    """Do in a plain folder what an operation on a volume is said to do."""
    file = top / path
    if operation == "put":
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    elif operation == "remove":
        file.unlink()
    else:
        copied = file.read_bytes()
        target = top / other / file.name if (top / other).is_dir() else top / other
        if target.is_dir():
            raise IsADirectoryError(str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(copied)
