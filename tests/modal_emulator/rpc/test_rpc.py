"""Who may call, and what isn't answered."""

from __future__ import annotations

import os
import subprocess
import sys

import modal
import pytest

from modal_emulator import Emulator


def test_a_wrong_token_is_an_auth_error(modal_emulator: Emulator) -> None:
    code = "import modal; modal.Function.from_name('deployed', 'answer').hydrate()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "MODAL_TOKEN_SECRET": "as-wrong"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "AuthError" in done.stderr
    assert "emulator run" in done.stderr


def test_what_is_not_emulated_says_so(modal_emulator: Emulator) -> None:
    app = modal.App.lookup("for-a-sandbox", create_if_missing=True)
    with pytest.raises(modal.exception.Error, match="emulator does not implement"):
        modal.Sandbox.create("true", app=app)
