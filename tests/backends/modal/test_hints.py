"""What an error of a run advises."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import modal
import pytest

from ml_experiments.backends.modal.hints import ModalHints
from ml_experiments.backends.modal.mounts import (
    CACHE_MOUNT,
    CACHE_VOLUME,
    RUNS_MOUNT,
    RUNS_VOLUME,
    cache_volume,
    runs_volume,
)
from ml_experiments.core.modal_runner import run_experiment_local
from ml_experiments.execution.hints import Hints
from ml_experiments.runs.result import ErrorKind
from ml_experiments.runs.spec import RunSpec
from modal_emulator import Emulator

FREE_RUNS = f"modal volume rm -r {RUNS_VOLUME} RUN_ID"
FREE_CACHE = "ml-experiments cache clear PATTERN"
HINTS = {"local": Hints(), "modal": ModalHints()}


def full_disk(
    backend: str, file: str | bytes | int | None = None, number: int = errno.ENOSPC
) -> str:
    """Return the hint for a full disk."""
    error = OSError(number, os.strerror(number), file)
    described = HINTS[backend].describe(error, RunSpec("run-1", "m:C", {}, 0, "", backend=backend))
    assert described.kind is ErrorKind.INFRASTRUCTURE
    return described.hint


@pytest.mark.parametrize(
    ("backend", "module", "hint"),
    [
        ("modal", "skimage", "add it with --pip scikit-image"),
        ("local", "skimage", "pip install scikit-image"),
        # `google` is there, and no package is called google
        (
            "modal",
            "google.cloud",
            "nothing that is installed has google.cloud; if it is a package's, ",
        ),
        ("modal", "ml_experiments.runner", "a container holds the parts of ml_experiments that"),
    ],
)
def test_a_missing_module_is_installed_by_its_package(backend: str, module: str, hint: str) -> None:
    error = ModuleNotFoundError(f"No module named {module!r}", name=module)
    described = HINTS[backend].describe(error, RunSpec("run-1", "m:C", {}, 0, "", backend=backend))
    assert described.hint.startswith(hint)


def test_a_name_that_a_module_lacks_is_no_missing_package() -> None:
    error = ImportError("cannot import name 'x' from 'torch'", name="torch")
    assert Hints().describe(error, RunSpec("run-1", "m:C", {}, 0, "")).hint == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_of_this_machine_is_to_be_freed_here(number: int) -> None:
    assert full_disk("local", "/runs/x", number) == (
        "free some disk space, or set ML_EXPERIMENTS_RUNS_DIR to a larger disk"
    )


@pytest.mark.parametrize("file", [f"{RUNS_MOUNT}/run-1/log.txt", b"/runs/run-1/log.txt"])
def test_a_full_runs_volume_is_named_with_the_command_that_frees_it(file: str | bytes) -> None:
    hint = full_disk("modal", file)
    assert f"volume {RUNS_VOLUME} " in hint
    assert hint.endswith(FREE_RUNS)
    assert "disk" not in hint


def test_a_full_cache_volume_is_named_with_the_command_that_frees_it() -> None:
    hint = full_disk("modal", f"{CACHE_MOUNT}/huggingface/hub/blobs/x")
    assert f"volume {CACHE_VOLUME} " in hint
    assert hint.endswith(FREE_CACHE)
    assert RUNS_VOLUME not in hint


@pytest.mark.parametrize("file", [None, 3])
def test_without_a_file_both_volumes_are_named(file: int | None) -> None:
    hint = full_disk("modal", file)
    assert hint.index(FREE_RUNS) < hint.index(FREE_CACHE)


def test_a_full_disk_of_a_container_is_no_volume() -> None:
    hint = full_disk("modal", "/tmp/big.bin")
    assert "container's own disk" in hint
    assert RUNS_VOLUME not in hint


@pytest.mark.slow
@pytest.mark.parametrize(
    ("volume", "folder", "command"),
    [
        (RUNS_VOLUME, "current_run().output_dir", FREE_RUNS),
        (CACHE_VOLUME, "Path(os.environ['HF_HOME'])", FREE_CACHE),
    ],
)
def test_a_run_that_fills_a_volume_says_how_to_empty_it(
    modal_emulator: Emulator, tmp_path: Path, volume: str, folder: str, command: str
) -> None:
    for each in (runs_volume(), cache_volume()):
        each.hydrate()
    (tmp_path / "fills.py").write_text(
        "import os\nfrom pathlib import Path\nfrom ml_experiments import current_run\n"
        f"def fill():\n    folder = {folder}\n    folder.mkdir(parents=True, exist_ok=True)\n"
        "    with (folder / 'big.bin').open('wb') as file:\n"
        "        for _ in range(64):\n            file.write(bytes(1 << 20))\n"
    )
    used = sum(entry.size for entry in modal.Volume.from_name(volume).iterdir("/"))
    modal_emulator.limit_volume(volume, max_bytes=used + (20 << 20))
    result = run_experiment_local({}, f"{tmp_path / 'fills.py'}:fill")
    assert result["status"] == "error"
    assert result["error"]["kind"] == "infrastructure"
    assert "No space left" in result["error"]["message"]
    assert command in result["error"]["hint"]


@pytest.mark.parametrize(
    ("file", "hint"),
    [
        ("data/words.txt", "Path(__file__).parent / 'data/words.txt'"),
        ("/root/experiment_source/words.txt", "with the package that they are in"),
        ("/data/words.txt", ""),
    ],
)
def test_a_data_file_that_was_not_sent_along_says_how_to_send_it(file: str, hint: str) -> None:
    error = FileNotFoundError(2, "No such file or directory", file)
    told = ModalHints().describe(error, RunSpec("run-1", "m:C", {}, 0, "", backend="modal")).hint
    assert bool(told) == bool(hint)
    assert hint in told
