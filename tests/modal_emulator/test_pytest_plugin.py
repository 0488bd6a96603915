"""The fixtures for tests of a user's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("without_modal")


APP = """
import modal

app = modal.App("mine")
files = modal.Volume.from_name("files", create_if_missing=True)
seen = modal.Dict.from_name("seen", create_if_missing=True)

@app.function(gpu="A10", volumes={"/files": files})
def square(x):
    open(f"/files/{x}", "w").close()
    files.commit()
    return x * x
"""

TESTS = """
import pytest
from my_app import app, files, seen, square

@pytest.mark.parametrize("x", [3, 4])
def test_a_test_finds_nothing_of_another(modal_emulator, x):
    assert seen.len() == 0
    seen[x] = True
    with app.run():
        assert square.remote(x) == x * x
    assert [entry.path for entry in files.listdir("/")] == [str(x)]
    assert [each.gpus for each in modal_emulator.functions("square")] == [("A10",)]

@pytest.mark.parametrize("x", [5, 6])
def test_those_of_one_server_share_its_state(modal_emulator_server, x):
    seen[x] = True
    assert sorted(seen.keys()) == [5, 6][: x - 4]

def test_one_of_its_own_between_those_that_share(modal_emulator):
    assert seen.len() == 0

def test_the_shared_one_is_found_again(modal_emulator_server):
    assert sorted(seen.keys()) == [5, 6]
"""


@pytest.mark.slow
def test_the_pytest_plugin_serves_a_users_own_tests(tmp_path: Path) -> None:
    (tmp_path / "my_app.py").write_text(APP)
    (tmp_path / "test_my_app.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert "6 passed" in done.stdout, done.stdout
