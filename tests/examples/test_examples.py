"""The examples, as a user starts them: from the shell and under `modal run`."""

from __future__ import annotations

import ast
import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from modal_emulator import Emulator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("text_to_image_modal.py", "benchmark_modal.py", "cache_management.py")


LAUNCHERS = ((), ("-m", "modal", "run"))
LAUNCHER_NAMES = ("shell", "modal run")


def call(
    emulator: Emulator, folder: Path, *command: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **emulator.environment, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def start(emulator: Emulator, folder: Path, *command: str) -> str:
    done = call(emulator, folder, *command)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def test_the_examples_import_public_names_only() -> None:
    public = ("ml_experiments", "ml_experiments.core.modal_runner", "ml_experiments.tasks")
    for name in NAMES:
        tree = ast.parse((EXAMPLES / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ml_experiments"):
                home = importlib.import_module(str(node.module))
                assert node.module in public, f"{name} imports {node.module}"
                assert {alias.name for alias in node.names} <= set(home.__all__), name
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith("ml_experiments") for alias in node.names)


@pytest.mark.parametrize("name", NAMES)
def test_help(modal_emulator: Emulator, tmp_path: Path, name: str) -> None:
    shell = start(modal_emulator, tmp_path, str(EXAMPLES / name), "--help")
    modal_run = start(
        modal_emulator, tmp_path, "-m", "modal", "run", str(EXAMPLES / name), "--help"
    )
    options = [word for word in shell.split() if word.startswith("--") and word != "--help"]
    assert options
    assert all(option.strip("],") in modal_run for option in options if option[2:3].isalpha())


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=LAUNCHER_NAMES)
def test_text_to_image_draws(
    modal_emulator: Emulator, tmp_path: Path, runs_dir: Path, launcher: tuple[str, ...]
) -> None:
    options = ("--prompt", "a blue two", "--num-images", "2", "--gpu-type", "l4")
    printed = start(
        modal_emulator, tmp_path, *launcher, str(EXAMPLES / "text_to_image_modal.py"), *options
    )
    assert "about $" in printed
    assert "ml-experiments: {" not in printed  # events are not for people
    [folder] = runs_dir.iterdir()
    pictures = sorted((folder / "artifacts").glob("0*.png"))
    assert len(pictures) == 2
    assert all(str(picture) in printed for picture in pictures)
    assert Image.open(pictures[0]).size == (32, 32)
    assert modal_emulator.functions("run_remote")[-1].gpus == ("L4",)


def test_benchmark_compares_gpu_types(modal_emulator: Emulator, tmp_path: Path) -> None:
    options = ("--gpu-types", "t4,h100", "--num-images", "2", "--output-dir", "out")
    printed = start(modal_emulator, tmp_path, str(EXAMPLES / "benchmark_modal.py"), *options)
    with (tmp_path / "out" / "benchmark.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["gpu_type"] for row in rows] == ["t4", "h100"]
    for row in rows:
        assert float(row["images_per_s"]) > 0
        assert float(row["seconds"]) > 0
        assert float(row["usd_per_image"]) > 0
        assert row["gpu_type"] in printed
    assert Image.open(tmp_path / "out" / "benchmark.png").size == (900, 600)
    gpus = {info.gpus for info in modal_emulator.functions("run_remote")[-2:]}
    assert gpus == {("T4",), ("H100",)}


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=LAUNCHER_NAMES)
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("text_to_image_modal.py", ("--gpu-type", "h1000"), "did you mean 'h100'"),
        ("text_to_image_modal.py", ("--num-images", "0"), "num_images: given 0"),
        ("benchmark_modal.py", ("--gpu-types", "t4,h1000"), "did you mean 'h100'"),
        ("cache_management.py", ("--clear", "org@one@two"), "'org@one@two' is not a pattern"),
    ],
)
def test_a_mistake_is_a_message_on_stderr_before_any_run(
    modal_emulator: Emulator,
    tmp_path: Path,
    runs_dir: Path,
    launcher: tuple[str, ...],
    name: str,
    options: tuple[str, ...],
    says: str,
) -> None:
    done = call(modal_emulator, tmp_path, *launcher, str(EXAMPLES / name), *options)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr.partition("error: ")[2]
    assert name not in done.stderr  # no traceback leads through the example
    assert list(runs_dir.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_without_a_token_the_command_that_gets_one_is_named(
    modal_emulator: Emulator, tmp_path: Path, name: str
) -> None:
    no_token = {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": "", "MODAL_CONFIG_PATH": "none.toml"}
    done = call(modal_emulator, tmp_path, str(EXAMPLES / name), **no_token)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: there is no Modal token")
    assert "modal token new" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=LAUNCHER_NAMES)
def test_cache_management_shows_before_it_deletes(
    modal_emulator: Emulator, tmp_path: Path, launcher: tuple[str, ...]
) -> None:
    command = (*launcher, str(EXAMPLES / "cache_management.py"), "--clear", "nobody/*")
    assert "nothing was deleted: add --force" in start(modal_emulator, tmp_path, *command)
    assert "freed 0.00 MB in 0 models" in start(modal_emulator, tmp_path, *command, "--force")
