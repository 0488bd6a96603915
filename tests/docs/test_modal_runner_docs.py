"""Every code block and shell command of the documentation, run against the emulator.

So are those of the document that this project was asked to make true.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from ml_experiments.core.modal_runner import (
    ModalRunOptions,
    create_gpu_function,
    run_experiment_local,
)
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.tasks.tiny_digits import model_dir
from modal_emulator import Emulator
from tests.support.hub_server import HubServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROJECT = Path(__file__).parents[2]
PAGE = PROJECT / "docs" / "modal-runner.md"
ORIGINAL = Path(__file__).parent / "original_document.md"
MODELS = (
    "stabilityai/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-xl-base-1.0",
)
SECRETS = ("huggingface-secret", "wandb-secret", "aws-secret")
# what the original says that Modal no longer has -> what takes its place
CHANGED = {"modal.gpu.A100(count=2)": '"A100:2"'}


def blocks(language: str) -> list[str]:
    """Return the blocks of a language in both documents, each once."""
    found = []
    for document in (PAGE, ORIGINAL):
        text = document.read_text(encoding="utf-8")
        found += re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return list(dict.fromkeys(found))


def commands() -> list[str]:
    """Return the shell commands of both documents, each once."""
    lines = [
        line.partition("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()
    ]
    return list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))


def title(block: str) -> str:
    names = re.findall(r"(?:def|import|->|print) ?\(?([\w, ]+)", block)
    return (names[-1] if names else block)[:40].strip()


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A Hub with the models that the documents name; small ones stand in for their weights."""
    with HubServer() as server:
        for name in MODELS:
            server.add_repo(name, Path(model_dir()))
        yield server


@pytest.fixture
def environment(modal_emulator: Emulator, hub: HubServer) -> Iterator[dict[str, str]]:
    """What a user's shell has: the programs, and Modal, here the emulator."""
    # containers get the address of the Hub as they would get a token
    modal.Secret.objects.create("huggingface-secret", hub.environment())
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    yield {**os.environ, **modal_emulator.environment, "PATH": path}
    for name in SECRETS:
        modal.Secret.objects.delete(name, allow_missing=True)


def run(command: list[str] | str, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        command,
        shell=isinstance(command, str),
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def file_name(block: str) -> str:
    """Return the name of a block's file, which its first line may say."""
    named = re.match(r"# (\w+\.py)\n", block)
    return named[1] if named else "block.py"


def deploy(app: str, environment: dict[str, str], folder: Path) -> None:
    """Deploy the file that the page says an app is named after."""
    if app == "ml-experiments":
        run("modal deploy ml_experiments/core/modal_runner.py", environment, PROJECT)
        return
    name = f"{app.removeprefix('ml-experiments-')}.py"
    [block] = [b for b in blocks("python") if file_name(b) == name]
    (folder / name).write_text(block)
    run(f"modal deploy {name}", environment, folder)


# the original's first one has a test of its own, below
@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if "print(result)" not in b], ids=title
)
def test_python_block(block: str, environment: dict[str, str], tmp_path: Path) -> None:
    for gone, present in CHANGED.items():
        block = block.replace(gone, present)
    file = tmp_path / file_name(block)
    file.write_text(block)
    if "run_experiment_local" in block:
        # ten pictures of the size that the document means, from the model that stands in
        assert "Error" not in run([sys.executable, file.name], environment, tmp_path)
        return
    for app in re.findall(r'Function\.from_name\("([\w-]+)"', block):
        deploy(app, environment, tmp_path)
    run([sys.executable, file.name], environment, tmp_path)
    for name in re.findall(
        r"^@(?:app\.function|create_gpu_function).*?^def (\w+)", block, re.M | re.S
    ):
        run(f"modal run {file.name}::{name}", environment, tmp_path)
        run(f"modal deploy {file.name}", environment, tmp_path)


def test_the_quick_start_draws_the_pictures_that_it_asks_for(
    environment: dict[str, str], tmp_path: Path, runs_dir: Path
) -> None:
    [block] = [b for b in blocks("python") if "print(result)" in b]
    printed = run([sys.executable, "-c", block], environment, tmp_path)
    assert "'status': 'success'" in printed
    [folder] = runs_dir.iterdir()
    assert len([p for p in (folder / "artifacts").glob("*.png") if p.name[0].isdigit()]) == 10


@pytest.mark.parametrize("command", commands())
def test_command(command: str, environment: dict[str, str], runs_dir: Path) -> None:
    if command == "modal token new":  # opens a browser
        command += " --help"
    if command.startswith("modal secret create"):
        modal.Secret.objects.delete(command.split()[3], allow_missing=True)
    if "Function.from_name" in command or "app list" in command:
        run("modal deploy ml_experiments/core/modal_runner.py", environment, PROJECT)
    run(command, environment, PROJECT)


def test_the_page_names_exactly_the_keys_of_a_result_and_every_parameter() -> None:
    page = PAGE.read_text(encoding="utf-8")
    returned = page.partition("It returns a dict with")[2].partition(". ")[0]
    keys = set(re.findall(r"`(\w+)`", returned)) - {"success", "error", "cancelled"} | {"error"}
    assert keys == set(RunResult("run-1", RunStatus.SUCCESS, "m:C", None).to_dict())
    for function in (run_experiment_local, create_gpu_function):
        section = page.partition(f"### `{function.__name__}()`")[2].partition("\n### ")[0]
        rows = re.findall(r"^\| (`.*?) \|", section, re.M)
        names = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
        parameters = list(inspect.signature(function).parameters)
        if parameters[-1] == "options":  # each of which `gpu_type` or `timeout` doesn't stand for
            options = ModalRunOptions.__annotations__.keys() - {"gpu", "timeout_s"}
            assert set(names[4:]) == options
            parameters[4:] = names[4:]
        assert names == parameters


def test_the_page_covers_every_section_of_the_original() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"^### `(\w+)\(\)`", ORIGINAL.read_text(encoding="utf-8"), re.M):
        assert f"### `{name}()`" in page
    for word in ("Troubleshooting", "GPU types", "Environment variables", "Examples", "Secrets"):
        assert word.casefold() in page.casefold()


def test_the_page_has_the_catalogue_of_gpu_types() -> None:
    from ml_experiments.backends.modal.gpus import CATALOGUE

    page = PAGE.read_text(encoding="utf-8")
    for gpu in CATALOGUE:
        names = " ".join([f"`{gpu.key}`", *(f"(`{alias}`)" for alias in gpu.aliases)])
        assert f"| {names} | {gpu.memory_gb} GB | {gpu.purpose.removeprefix(': ')} |" in page


def test_the_page_has_the_environment_of_the_image() -> None:
    from ml_experiments.backends.modal.mounts import ENVIRONMENT

    page = PAGE.read_text(encoding="utf-8")
    for name, value in ENVIRONMENT.items():
        if name != "ML_EXPERIMENTS_RUNS_DIR":
            assert f"`{name}={value}`" in page
