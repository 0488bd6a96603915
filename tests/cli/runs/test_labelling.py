"""`ml-experiments runs tag|name|note`, and what they write."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.labels import Labels, edit_labels, read_labels
from tests.cli.runs.conftest import Command
from tests.support.run_folders import write_run

RUN = "20260101-000000-0000001"


@pytest.fixture(autouse=True)
def folder(runs_dir: Path) -> RunFolder:
    return write_run(runs_dir, RUN, name="first", tags={"team": "vision"})


def test_tags_are_set_changed_removed_and_printed(command: Command, folder: RunFolder) -> None:
    assert command("tag", "last").out == "team=vision\n"
    assert not (folder.path / "labels.json").exists()
    assert command("tag", RUN, "stage=try", "team=audio").out == "team=audio\nstage=try\n"
    assert command("tag", RUN, "--remove", "team", "a=b=c").out == "stage=try\na=b=c\n"
    rows = json.loads(command("list", "--tag", "stage=try", "--json").out)
    assert rows[0]["values"] == {"tags.stage": "try", "tags.a": "b=c"}
    assert folder.read_spec().tags == {"team": "vision"}  # what was asked for stays


def test_a_name_and_a_note_are_set_removed_and_printed(command: Command) -> None:
    assert command("name", RUN).out == "first\n"
    assert command("name", RUN, "the best").out == "the best\n"
    assert command("note", RUN).err == "the run has no note\n"
    assert command("note", RUN, "because\nof \x1b[31mthis").out == "because\nof this\n"
    assert json.loads(command("list", "--name", "the*", "--json").out)[0]["name"] == "the best"
    shown = command("show", RUN).out
    assert "the best" in shown
    assert "because" in shown
    assert json.loads(command("show", RUN, "--json").out)["labels"]["tags"] == {"team": "vision"}
    assert command("name", RUN, "--remove").out == ""
    assert command("note", RUN, "--remove").out == ""
    assert json.loads(command("list", "--json").out)[0]["note"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tag", RUN, "stage"), "write key=value"),
        (("tag", RUN, "--remove", "teams"), "did you mean 'team'"),
        (("name", RUN, ""), "is empty"),
        (("name", RUN, "a", "--remove"), "takes no value"),
        (("note", "nothing", "a"), "no run"),
    ],
)
def test_a_mistake_changes_nothing(
    command: Command, folder: RunFolder, arguments: tuple[str, ...], message: str
) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert message in done.err
    assert not (folder.path / "labels.json").exists()


def test_damaged_labels_are_named(command: Command, folder: RunFolder) -> None:
    (folder.path / "labels.json").write_text('{"tags": 3}')
    done = command("tag", RUN, "a=b")
    assert done.code == 2
    assert "labels.json" in done.err
    assert (folder.path / "labels.json").read_text() == '{"tags": 3}'


def test_a_secret_is_not_written(
    command: Command, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "hunter2hunter2")
    command("note", RUN, "the token is hunter2hunter2")
    assert "hunter2" not in (folder.path / "labels.json").read_text()


def _tag(arguments: tuple[Path, int]) -> None:
    path, number = arguments
    for step in range(10):
        edit_labels(
            RunFolder(path),
            lambda labels, key=f"{number}-{step}": Labels(  # type: ignore[misc]
                labels.name, {**labels.tags, key: "x"}
            ),
        )


def test_two_people_who_tag_at_once_lose_nothing(folder: RunFolder) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        pool.map(_tag, [(folder.path, number) for number in range(3)])
    assert len(read_labels(folder).tags) == 31


def test_on_a_full_disk_the_old_labels_stay(folder: RunFolder) -> None:
    edit_labels(folder, lambda labels: Labels("kept", labels.tags))
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "from ml_experiments.cli.main import main\n"
        f"main(['runs', 'name', {RUN!r}, 'lost'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "can't be written" in done.stderr
    assert read_labels(folder).name == "kept"
    assert sorted(path.name for path in folder.path.iterdir()) == [
        *("labels.json", "log.txt", "manifest.json", "result.json", "spec.json"),
    ]
