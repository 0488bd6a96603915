"""The bell at the end of a long run."""

from __future__ import annotations

import io
import sys

import pytest

from ml_experiments.cli import bell


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "long_s", "expected"),
    [(Screen, 0.0, "\a"), (Screen, 60.0, ""), (io.StringIO, 0.0, "")],
    ids=["long on a terminal", "short on a terminal", "long in a pipe"],
)
def test_only_a_long_run_on_a_terminal_rings(
    stream: type[io.StringIO], long_s: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(bell, "LONG_S", long_s)
    with bell.bell_when_long():
        pass
    assert shown.getvalue() == expected


def test_a_failure_rings_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Screen()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(bell, "LONG_S", 0.0)
    with pytest.raises(KeyboardInterrupt), bell.bell_when_long():
        raise KeyboardInterrupt
    assert shown.getvalue() == "\a"


def test_the_command_rings_at_the_end_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from ml_experiments.cli.main import cli

    shown = Screen()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(bell, "LONG_S", 0.0)
    arguments = ["run", "tests.support.experiments:Plain"]
    assert cli.main(arguments, standalone_mode=False) == 0
    assert "\a" in shown.getvalue()
