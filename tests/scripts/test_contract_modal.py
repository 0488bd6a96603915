"""`make contract-modal`, with a second local server in the place of Modal."""

from __future__ import annotations

import os
from pathlib import Path

import modal
import pytest

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from scripts.contract_modal import Outcome, agree, app_ids, outcomes, report
from tests.support.command import run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "contract_modal.py"


@pytest.mark.slow
def test_it_asks_reports_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "report.md"
    chosen = ["--report", str(file), "--", "-k", "client_sees or required_key"]
    with Emulator() as stands_for_modal, connected(stands_for_modal):
        modal.Volume.objects.create("contract-mine")
        for answer in ("", "n\n"):  # "" is the end of the input
            refused = run_script(SCRIPT, *chosen, answer=answer)
            assert (refused.returncode, file.exists()) == (2, False), refused.stderr
        assert "at most $0." in refused.stdout
        assert "minutes" in refused.stdout
        done = run_script(SCRIPT, *chosen, answer="y\n")
        assert done.returncode == 0, done.stdout + done.stderr
        assert [each.name for each in modal.Volume.objects.list()] == ["contract-mine"]
        assert [*modal.Dict.objects.list(), *modal.Secret.objects.list()] == []
        assert {each.state for each in stands_for_modal.apps()} == {"stopped"}
    rows = file.read_text().splitlines()[2:]
    assert len(rows) == 2
    assert all(row.endswith("| holds | holds | yes |") for row in rows)
    assert "https://modal.com/docs/guide/volumes" in file.read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("without_token")
def test_without_a_token_nothing_is_asked() -> None:
    done = run_script(SCRIPT)
    assert done.returncode == 2
    assert "Token missing" in done.stderr
    assert "cost" not in done.stdout


@pytest.fixture
def without_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("MODAL_") and name != "MODAL_EMULATOR_IMAGES":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_behaviour_on_which_the_servers_differ_is_marked() -> None:
    junit = """<testsuites><testsuite><testcase name="test_a_b">
    <properties><property name="page" value="p"/><property name="says" value="s"/></properties>
    {}</testcase><testcase name="test_of_no_behaviour"/></testsuite></testsuites>"""
    holds = outcomes(junit.format(""))
    broken = outcomes(junit.format('<failure message="x | y&#10;more"/>'))
    assert holds == {"a b": Outcome("p", "s", "holds")}
    assert report(holds, broken).splitlines()[2] == (
        "| a b | [s](p) | holds | does not hold: x \\| y | **no** |"
    )
    assert agree(None, holds["a b"]) == "—"


def test_only_running_apps_with_the_prefix_are_stopped() -> None:
    listing = """[{"App ID": "ap-1", "Description": "contract-1-app", "State": "deployed"},
    {"App ID": "ap-2", "Description": "contract-1-app", "State": "stopped"},
    {"App ID": "ap-3", "Description": "contract-12-app", "State": "deployed"},
    {"App ID": "ap-4", "Description": "mine", "State": "deployed"}]"""
    assert app_ids(listing, "contract-1") == ["ap-1"]
