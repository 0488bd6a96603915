"""Results as people see them: in one line, and in a notebook."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import Artifact, ErrorKind, RunError, RunResult, RunStatus
from tests.support.run_folders import write_run

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 50


class Page(HTMLParser):
    """What an HTML fragment holds."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.pictures: list[dict[str, str | None]] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures.append(dict(attrs))
        else:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return write_run(
        tmp_path,
        "20260101-000000-0000001",
        config={"lr": 0.1, "prompt": "<b>a seven</b>"},
        results={"loss": 0.123456789, "image": {"$type": "image", "path": "artifacts/1.png"}},
    )


def with_files(folder: RunFolder, *names: str, content: bytes = PNG) -> RunResult:
    folder.artifacts_dir.mkdir()
    for name in names:
        (folder.artifacts_dir / name).write_bytes(content)
    return dataclasses.replace(folder.outcome(), artifacts=folder.list_artifacts())


def test_a_result_is_one_line(folder: RunFolder) -> None:
    shown = repr(folder.outcome())
    assert shown.startswith("<RunResult 20260101-000000-0000001 train.Train: success in 1.50 s {")
    error = RunError(ErrorKind.EXPERIMENT, "ValueError", "a bad batch")
    failed = RunResult("1", RunStatus.ERROR, "a.B", error=error)
    assert repr(failed) == "<RunResult 1 a.B: error experiment: ValueError: a bad batch>"
    huge = dataclasses.replace(failed, error=None, results_json=list(range(100_000)))
    assert len(repr(huge)) < 300
    assert "\n" not in repr(huge)


def test_a_notebook_shows_status_config_results_and_pictures(folder: RunFolder) -> None:
    result = with_files(folder, "1.png", "2.png", "3.png", "4.png", "5.png", "notes.txt")
    page = Page(result._repr_html_())
    for word in ("success", "config.lr", "0.1", "results.loss", "0.123457", "6 files"):
        assert word in page.text
    assert [picture["title"] for picture in page.pictures] == [
        f"artifacts/{number}.png" for number in range(1, 5)
    ]
    assert str(page.pictures[0]["src"]).startswith("data:image/png;base64,iVBOR")
    assert page.open == []


def test_what_a_run_says_is_shown_as_text_only(folder: RunFolder) -> None:
    evil = "<script>alert(1)</script>"
    error = RunError(ErrorKind.EXPERIMENT, evil, evil, traceback=evil, hint=evil)
    result = dataclasses.replace(
        with_files(folder, 'a".png', "a.svg"),
        experiment_class=evil,
        error=error,
        results_json={evil: evil},
    )
    page = Page(result._repr_html_())
    assert set(page.tags) <= {"div", "b", "code", "table", "tr", "th", "td", "pre", "img"}
    assert page.text.count("alert(1)") == 7
    assert [picture["title"] for picture in page.pictures] == ['artifacts/a".png']


def test_only_small_pictures_inside_the_run_folder_are_shown(
    folder: RunFolder, tmp_path: Path
) -> None:
    result = with_files(folder, "large.png", content=b"x" * 3_000_000)
    (tmp_path / "secret.png").write_bytes(PNG)
    outside = [
        Artifact("../secret.png", 10, "image/png"),
        Artifact(str(tmp_path / "secret.png"), 10, "image/png"),
        Artifact("artifacts/gone.png", 10, "image/png"),
        Artifact("artifacts", 10, "image/png"),
        Artifact("artifacts/large.png", 10, "image/png"),
    ]
    result = dataclasses.replace(result, artifacts=(*result.artifacts, *outside))
    assert Page(result._repr_html_()).pictures == []


def test_a_result_with_thousands_of_values_stays_short(folder: RunFolder) -> None:
    values = {f"value{number}": "x" * 10_000 for number in range(5000)}
    shown = dataclasses.replace(folder.outcome(), results_json=values)._repr_html_()
    assert len(shown) < 30_000
    assert re.search(r"4980 more", shown)


@pytest.mark.parametrize("results", [None, 3, [1, 2], "a", {"$type": "float", "value": "nan"}])
def test_results_of_every_form_are_shown_without_their_folder(results: object) -> None:
    result = RunResult("1", RunStatus.SUCCESS, "a.B", results_json=results)
    assert "success" in Page(result._repr_html_()).text
    assert repr(result)
