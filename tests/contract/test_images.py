"""Images: what their steps leave for functions, and what a failing one does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import modal
import pytest
from modal.exception import RemoteError

from modal_emulator import Emulator
from modal_emulator.pytest_plugin import connected
from tests.contract.conftest import IS_REAL, PREFIX
from tests.support.image_builds import UV, own_layer_cache

documented = pytest.mark.documented
pytestmark = pytest.mark.skipif(not (IS_REAL or UV), reason="needs uv")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Connect to a local server that builds images, unless the contract is checked on Modal."""
    if IS_REAL:
        yield
        return
    with (
        own_layer_cache(tmp_path_factory.mktemp("cache")),
        Emulator(images="build") as emulator,
        connected(emulator),
    ):
        yield


def run_in(image: modal.Image) -> dict[str, str]:
    import contract_app

    app = modal.App(f"{PREFIX}-image")
    function = app.function(**contract_app.SMALL, image=image)(contract_app.look_at_image)
    with app.run():
        found: dict[str, str] = function.remote()
    return found


@documented("guide/images", "The steps of an image are executed in their order, on its base.")
def test_steps_build_on_each_other(built: None, tmp_path: Path) -> None:
    import contract_app

    (tmp_path / "file").write_text("added")
    image = (
        modal.Image.debian_slim()
        .pip_install("six==1.16.0")
        .run_commands("python -c 'import six; print(six.__version__)' > /root/from-command")
        .env({"CONTRACT_IMAGE": "yes"})
        .run_function(contract_app.write_in_image)
        .workdir("/root/work")
        .add_local_file(tmp_path / "file", "/root/from-file")
    )
    assert run_in(image) == {
        "six": "1.16.0",
        "variable": "yes",
        "folder": "/root/work",
        "from-command": "1.16.0\n",
        "from-function": "1.16.0",
        "from-file": "added",
    }


@documented("guide/images", "An image whose step fails is an error when the app starts.")
def test_a_failing_command_stops_the_app_before_anything_runs(built: None) -> None:
    with pytest.raises(RemoteError, match="failed"):
        run_in(modal.Image.debian_slim().run_commands("exit 3"))


@documented("guide/images", "A function of run_function that fails is a failing step.")
def test_a_failing_build_function_stops_the_app(built: None) -> None:
    import contract_app

    with pytest.raises(RemoteError, match="failed"):
        run_in(modal.Image.debian_slim().run_function(contract_app.write_in_image))
