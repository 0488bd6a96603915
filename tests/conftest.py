"""What every test may use."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from modal_emulator import Emulator

# tests run side by side: threads of torch that wait in busy loops would starve each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# the GPU image alone has 5 GB; the tests of builds ask for them
os.environ.setdefault("MODAL_EMULATOR_IMAGES", "record")
_ONLY_SLOW_FOLDERS = {"modal_emulator", "contract"}  # they start Modal containers
_ONLY_SLOW_FILE = re.compile(r"^pytestmark = \[?[^]=]*pytest\.mark\.slow\b", re.MULTILINE)
# a shell ignores it for what it starts in the background, and children would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def runs_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Send run folders to a temporary folder, never to the project's own."""
    folder = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(folder))
    monkeypatch.setenv("ML_EXPERIMENTS_INDEX_DIR", str(folder.with_name(f"{folder.name}-index")))
    monkeypatch.setenv("ML_EXPERIMENTS_STATE_DIR", str(folder.with_name(f"{folder.name}-state")))
    return folder


@pytest.fixture
def modal_emulator(
    modal_emulator_server: Emulator, runs_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Emulator]:
    """The server of the session, without faults: many modules share a running app with it."""
    modal_emulator_server.clear_faults()
    # the walk of this package's imports takes each command half a second, unless it is known
    known = tmp_path_factory.getbasetemp() / "container-files.json"
    index_dir = runs_dir.with_name(f"{runs_dir.name}-index")
    if known.exists():
        index_dir.mkdir()
        shutil.copy(known, index_dir)
    yield modal_emulator_server
    if (index_dir / known.name).exists():
        shutil.copy(index_dir / known.name, known)
    modal_emulator_server.clear_faults()


@pytest.fixture
def empty_cache(modal_emulator: Emulator) -> Emulator:
    """The server of the session, with nothing in its model cache.

    Other tests leave models, and repositories without a revision, which `cache clear` keeps.
    """
    from ml_experiments.backends.modal.mounts import cache_volume

    for left in cache_volume().listdir("/"):
        cache_volume().remove_file(left.path, recursive=True)
    return modal_emulator


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave unread what is slow as a whole, when only the fast tests are asked for.

    Some of these files import for seconds.
    """
    if config.option.markexpr != "not slow" or collection_path.suffix != ".py":
        return None
    if _ONLY_SLOW_FOLDERS & set(collection_path.relative_to(Path(__file__).parent).parts):
        return True
    return bool(_ONLY_SLOW_FILE.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Count what starts Modal containers as slow, and leave out what is run by name only."""
    is_exhaustive = "exhaustive" in config.option.markexpr
    for item in items:
        if item.get_closest_marker("exhaustive") and not is_exhaustive:
            item.add_marker(pytest.mark.skip(reason="takes minutes: pytest -m exhaustive"))
        fixtures = set(getattr(item, "fixturenames", ()))
        folders = _ONLY_SLOW_FOLDERS & set(item.path.parts)
        if folders or fixtures & {"modal_emulator", "modal_emulator_server"}:
            item.add_marker(pytest.mark.slow)
