"""The fixtures for tests of a user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("without_modal")


@pytest.mark.slow
def test_the_pytest_plugin_serves_a_users_own_tests(tmp_path: Path) -> None:
    (tmp_path / "my_app.py").write_text(
        "import modal\n"
        "app = modal.App('mine')\n"
        "@app.function(gpu='A10')\n"
        "def square(x):\n"
        "    return x * x\n"
    )
    (tmp_path / "test_my_app.py").write_text(
        "import my_app\n"
        "def test_square(modal_emulator):\n"
        "    with my_app.app.run():\n"
        "        assert my_app.square.remote(3) == 9\n"
        "    assert modal_emulator.functions('square')[0].gpus == ('A10',)\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert "1 passed" in done.stdout, done.stdout
