"""Names like a wrong one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import modal
import pytest
from modal_proto import api_pb2

from modal_emulator import Emulator
from tests.support.emulator_command import MODAL_APPS

RunModal = Callable[..., "subprocess.CompletedProcess[str]"]


APP = "deployed_app.py"


@pytest.fixture(scope="module")
def deployed(modal_emulator_server: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deploy the app from a folder of its own, where it can be changed."""
    folder = tmp_path_factory.mktemp("project")
    path = folder / APP
    shutil.copy(MODAL_APPS / APP, path)
    deploy(path)
    return path


def deploy(path: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_lookups_that_fail_say_what_there_is(deployed: Path) -> None:
    with pytest.raises(modal.exception.NotFoundError, match=r"no function 'anser'.*answer"):
        modal.Function.from_name("deployed", "anser").hydrate()
    with pytest.raises(modal.exception.NotFoundError, match=r"is a modal\.Cls"):
        modal.Function.from_name("deployed", "Greeter").hydrate()
    with pytest.raises(modal.exception.NotFoundError, match=r"'undeployed' is not deployed"):
        modal.Function.from_name("undeployed", "answer").hydrate()


@pytest.mark.skipif(
    not hasattr(api_pb2, "ObjectSuggestRequest"), reason="this modal makes no suggestions"
)
def test_the_command_line_suggests_names_like_a_wrong_one(
    deployed: Path, run_modal: RunModal
) -> None:
    for wrong, right in (
        (("app", "history", "deploed"), "modal app history deployed"),
        (("function", "info", "deployed/anser"), "modal function info deployed/answer"),
    ):
        done = run_modal(*wrong, check=False)
        assert done.returncode == 1
        assert right in done.stdout + done.stderr
