"""`modal volume`, `modal secret`, `modal dict` and `modal queue` from the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import modal
import pytest

from modal_emulator import Emulator

pytestmark = pytest.mark.slow


class Cli:
    """Runs the `modal` command in a folder."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = os.environ | environment

    def __call__(self, *arguments: str) -> str:
        done = self._run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def fail(self, *arguments: str) -> str:
        done = self._run(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "modal", *arguments],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def cli(modal_emulator: Emulator, tmp_path: Path) -> Cli:
    return Cli(tmp_path, modal_emulator.environment)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a large and a small file."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w" * 5_000_000)
    (tmp_path / "model" / "config.json").write_text("{}")
    return tmp_path / "model"


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_folder_goes_into_a_volume_and_out_again(
    cli: Cli, model: Path, tmp_path: Path, version: str
) -> None:
    name = f"cli-{version}"
    cli("volume", "create", name, "--version", version)
    cli("volume", "put", name, "model", "/models/")
    listed = cli.json("volume", "ls", name, "models/model")
    assert [(each["filename"], each["type"], each["size"]) for each in listed] == [
        ("models/model/config.json", "file", 2),
        ("models/model/weights", "file", 5_000_000),
    ]
    (tmp_path / "got").mkdir()
    cli("volume", "get", name, "/models/model", "got")
    for file in ("weights", "config.json"):
        assert (tmp_path / "got" / "model" / file).read_bytes() == (model / file).read_bytes()


def test_the_commands_for_files_in_a_volume(cli: Cli, model: Path) -> None:
    modal.Volume.objects.create("cli-files")
    put = ("volume", "put", "cli-files", "model/config.json", "folder/top.json")
    cli(*put)
    assert "already exists" in cli.fail(*put)
    (model / "config.json").write_text("forced")
    cli(*put, "--force")
    assert cli("volume", "get", "cli-files", "folder/top.json", "-").startswith("forced")

    cli("volume", "cp", "cli-files", "folder/top.json", "copy.json")
    assert "recursive" in cli.fail("volume", "rm", "cli-files", "folder")
    cli("volume", "rm", "-r", "cli-files", "folder")
    assert cli("volume", "ls", "cli-files").split() == ["copy.json"]
    assert "No such file" in cli.fail("volume", "rm", "cli-files", "folder")
    assert "'..'" in cli.fail("volume", "get", "cli-files", "../index.json", "-")


def test_the_commands_for_volumes(cli: Cli) -> None:
    cli("volume", "create", "cli-volume")
    assert "already exists" in cli.fail("volume", "create", "cli-volume")
    cli("volume", "rename", "--yes", "cli-volume", "cli-renamed")
    names = {each["name"] for each in cli.json("volume", "list")}
    assert "cli-renamed" in names
    assert "cli-volume" not in names
    cli("volume", "delete", "--yes", "cli-renamed")
    assert "not found" in cli.fail("volume", "ls", "cli-renamed")


def test_the_secret_commands(cli: Cli) -> None:
    cli("secret", "create", "cli-secret", "KEY=value", "OTHER=x")
    assert "already exists" in cli.fail("secret", "create", "cli-secret", "KEY=other")
    cli("secret", "create", "--force", "cli-secret", "KEY=other")
    (listed,) = [each for each in cli.json("secret", "list") if each["name"] == "cli-secret"]
    assert listed["last_used_at"] == "-"
    with pytest.raises(modal.exception.NotFoundError, match="OTHER"):
        modal.Secret.from_name("cli-secret", required_keys=["OTHER"]).hydrate()
    cli("secret", "delete", "--yes", "cli-secret")
    assert "cli-secret" not in {secret.name for secret in modal.Secret.objects.list()}


def test_the_dict_and_queue_commands(cli: Cli) -> None:
    modal.Dict.from_name("cli-dict", create_if_missing=True)["key"] = "value"
    assert cli.json("dict", "items", "cli-dict") == [{"key": "key", "value": "value"}]
    cli("dict", "delete", "--yes", "cli-dict")
    assert "cli-dict" not in {each.name for each in modal.Dict.objects.list()}

    queue = modal.Queue.from_name("cli-queue", create_if_missing=True)
    queue.put_many([1, 2, 3], partition="p")
    assert cli("queue", "peek", "cli-queue", "2", "--partition", "p").split() == ["1", "2"]
    (listed,) = [each for each in cli.json("queue", "list") if each["name"] == "cli-queue"]
    assert (listed["partitions"], listed["total_size"]) == (1, 3)
    cli("queue", "clear", "--yes", "--all", "cli-queue")
    assert cli("queue", "len", "cli-queue", "--total").strip() == "0"
