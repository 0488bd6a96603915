"""The frozen copy of the user's modules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_experiments.backends.modal.preflight.import_graph import walk_imports
from ml_experiments.backends.modal.preflight.staging import (
    MAX_DATA_BYTES,
    MAX_DATA_FILE_BYTES,
    StagedSource,
    stage_source,
    stage_this_package,
)
from tests.backends.modal.preflight.test_import_graph import write


def stage(module: str, *roots: Path, into: Path) -> StagedSource:
    return stage_source(walk_imports(module, list(roots)), into)


def files_below(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_package_goes_as_a_whole_and_a_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    write(
        project,
        {
            "proj/__init__.py": "",
            "proj/train.py": "import near",
            "proj/plugins/found_by_name.py": "",
            "proj/prompts/list.txt": "a seven",
            "proj/.hidden/secret.txt": "",
            "proj/__pycache__/train.pyc": "",
            "proj/node_modules/x.py": "",
            "proj/venv/pyvenv.cfg": "",
            "proj/venv/lib/x.py": "",
            "proj/runs/20260101-000000-0000000/log.txt": "of an earlier run",
            "near.py": "",
            "unrelated.py": "",
        },
    )
    monkeypatch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(project / "proj" / "runs"))
    staged = stage("proj.train", project, into=copy)
    assert files_below(copy) == {
        "proj/__init__.py",
        "proj/train.py",
        "proj/plugins/found_by_name.py",
        "proj/prompts/list.txt",
        "near.py",
    }
    assert staged.notes == ()


def test_of_a_namespace_package_only_what_is_imported_goes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one, {"space/a.py": "import space.b, space.c", "space/not_imported.py": ""})
    write(two, {"space/b.py": "", "space/c/__init__.py": "", "space/c/d.py": ""})
    stage("space.a", one, two, into=tmp_path / "copy")
    expected = {"space/a.py", "space/b.py", "space/c/__init__.py", "space/c/d.py"}
    assert files_below(tmp_path / "copy") == expected


def test_large_data_files_stay_behind_and_are_mentioned(tmp_path: Path) -> None:
    project, copy = tmp_path / "project", tmp_path / "copy"
    write(project, {"proj/__init__.py": "", "proj/train.py": ""})
    (project / "proj" / "weights.bin").write_bytes(b"x" * (MAX_DATA_FILE_BYTES + 1))
    staged = stage("proj.train", project, into=copy)
    assert files_below(copy) == {"proj/__init__.py", "proj/train.py"}
    [note] = staged.notes
    assert note.startswith("data files of proj are larger than 1 MiB and are not sent along: weigh")
    assert "modal volume put" in note


def test_data_files_that_a_single_file_names_are_sent_along(tmp_path: Path) -> None:
    source = (
        "from pathlib import Path\n"
        "labels = Path(__file__).with_name('labels.txt').read_text()\n"
        "words = open('data/words.txt')\n"
        "other = ['.env', '../above.txt', 'weights.bin', 'none.txt', '/etc/hostname', 'a\\0b']\n"
    )
    project, copy = tmp_path / "project", tmp_path / "copy"
    files = {"train.py": source, "labels.txt": "", "data/words.txt": "", ".env": "", "rest.txt": ""}
    write(project, files)
    (tmp_path / "above.txt").touch()
    (project / "weights.bin").write_bytes(b"x" * (MAX_DATA_FILE_BYTES + 1))
    staged = stage("train", project, into=copy)
    assert files_below(copy) == {"train.py", "labels.txt", "data/words.txt"}
    [note] = staged.notes
    assert note.startswith("data files of train.py are larger than 1 MiB")
    assert "weights.bin" in note


def test_data_files_whose_names_are_joined_are_sent_and_links_are_told(tmp_path: Path) -> None:
    source = (
        "import os\nfrom pathlib import Path\nHERE = Path(__file__).parent\n"
        "a = HERE / 'data' / 'a.txt'\nb = os.path.join(HERE, 'data', 'b.txt')\n"
        "c = HERE.joinpath('data', 'c.txt')\nd = HERE / 'data' / 'link.txt'\n"
        "e = HERE / 'far' / 'e.txt'\n"
    )
    files = {"train.py": source, **{f"data/{name}.txt": "" for name in "abcx"}}
    project = write(tmp_path / "project", files)
    far = write(tmp_path / "elsewhere", {"e.txt": "", "secret.txt": ""})
    (project / "data" / "link.txt").symlink_to(far / "secret.txt")
    (project / "far").symlink_to(far)
    staged = stage("train", project, into=tmp_path / "copy")
    assert files_below(tmp_path / "copy") == {"train.py", *(f"data/{name}.txt" for name in "abc")}
    [note] = staged.notes
    assert "links of train.py are not followed" in note
    assert {"data/link.txt", "far/e.txt"} <= set(re.split("[ ,;:]+", note))


def test_a_folder_that_a_single_file_lists_is_sent_or_told(tmp_path: Path) -> None:
    source = (
        "import os\nfrom pathlib import Path\nHERE = Path(__file__).parent\n"
        "a = list((HERE / 'lists').glob('*.txt'))\nb = os.listdir('much')\n"
    )
    files = {"lists/a.txt": "", "lists/more/b.txt": "", "lists/.env": "", "lists/code.py": ""}
    project = write(tmp_path / "project", {"train.py": source, **files})
    (project / "lists" / "weights.bin").write_bytes(b"x" * (MAX_DATA_FILE_BYTES + 1))
    (project / "lists" / "loop").symlink_to(project)
    (project / "much").mkdir()
    for number in range(MAX_DATA_BYTES // MAX_DATA_FILE_BYTES + 1):
        (project / "much" / f"{number}").write_bytes(bytes(1 << 20))
    staged = stage("train", project, into=tmp_path / "copy")
    expected = {"train.py", "lists/a.txt", "lists/more/b.txt"}
    assert files_below(tmp_path / "copy") == expected
    too_large, link, too_much = staged.notes
    assert "lists/weights.bin" in too_large
    assert "not followed: lists/loop" in link
    assert too_much.startswith("the files of much/, which train.py names, are more than 32 MiB")


def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    project = write(tmp_path / "project", {"proj/__init__.py": "", "proj/train.py": ""})
    (project / "proj" / "loop").symlink_to(project)
    staged = stage("proj.train", project, into=tmp_path / "copy")
    assert files_below(tmp_path / "copy") == {"proj/__init__.py", "proj/train.py"}
    assert [note.partition(";")[0] for note in staged.notes] == [
        "links of proj are not followed: loop"
    ]


def test_the_digest_tells_contents_apart(tmp_path: Path) -> None:
    project = write(tmp_path / "project", {"exp.py": "x = 1"})
    first = stage("exp", project, into=tmp_path / "1")
    again = stage("exp", project, into=tmp_path / "2")
    (project / "exp.py").write_text("x = 2")
    edited = stage("exp", project, into=tmp_path / "3")
    assert first.digest == again.digest != edited.digest


def test_an_experiment_of_this_package_stages_nothing_of_the_users(tmp_path: Path) -> None:
    stage("ml_experiments.tasks.text_to_image", into=tmp_path / "copy")
    assert files_below(tmp_path / "copy") == set()


def test_files_of_this_package_are_copied_with_their_folders(tmp_path: Path) -> None:
    files = {Path("__init__.py"), Path("tasks/tiny_digits/model/model_index.json")}
    stage_this_package(tmp_path / "copy", files)
    assert files_below(tmp_path / "copy") == {file.as_posix() for file in files}


def test_the_digest_tells_what_of_this_package_goes_along(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "exp.py").write_text("name = 'ml_experiments.tasks.tiny_digits'")
    write(tmp_path / "b", {"exp.py": "import ml_experiments.tasks.tiny_digits"})
    one, two = (stage("exp", tmp_path / name, into=tmp_path / f"{name}-copy") for name in "ab")
    assert one.own_files < two.own_files
    assert one.digest != two.digest
