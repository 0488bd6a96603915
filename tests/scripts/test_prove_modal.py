"""`make prove-modal`, with the local server in the place of Modal."""

from __future__ import annotations

from pathlib import Path

import pytest

from modal_emulator import Emulator
from scripts.prove_modal import STEPS, max_cost_usd, prove
from tests.support.command import run_script

SCRIPT = Path(__file__).parents[2] / "scripts" / "prove_modal.py"


@pytest.mark.slow
def test_every_documented_way_holds_on_the_local_server(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    done = run_script(SCRIPT, "--yes", "--runs-dir", str(tmp_path), timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    held = [line[8:].partition(":")[0] for line in done.stdout.splitlines() if line[:4] == "held"]
    assert held == list(STEPS)
    assert done.stdout.splitlines()[-1] == "5 of 5 held"


@pytest.mark.slow
@pytest.mark.parametrize("answer", ["\n", ""])  # "" is the end of the input
def test_it_states_the_cost_and_runs_nothing_unless_told_to(
    modal_emulator: Emulator, tmp_path: Path, answer: str
) -> None:
    done = run_script(SCRIPT, "--runs-dir", str(tmp_path / "runs"), answer=answer, timeout=200)
    assert done.returncode == 2
    assert "Nothing was run." in done.stdout
    assert f"at most ${max_cost_usd():.2f}" in done.stdout
    assert not (tmp_path / "runs").exists()
    assert max_cost_usd() < 0.5


def test_what_did_not_hold_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(_runs_dir: Path) -> str:
        raise AssertionError("no picture")

    monkeypatch.setitem(STEPS, "quick start", broken)
    assert not prove("quick start", tmp_path)
    assert capsys.readouterr().out == "failed  quick start: AssertionError: no picture\n"
