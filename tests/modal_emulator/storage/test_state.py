"""What is in the state folder after the server has been restarted."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import modal
import pytest
from modal.exception import InternalFailure, NotFoundError

from modal_emulator import Emulator
from modal_emulator.objects.image_records import ImageRecord
from modal_emulator.pytest_plugin import connected
from tests.support.waiting import wait_until

APP = Path(__file__).parents[1] / "modal_apps" / "deployed_app.py"


def deploy() -> None:
    subprocess.run(
        [sys.executable, "-m", "modal", "deploy", str(APP)],
        check=True,
        capture_output=True,
        timeout=120,
    )


def function(name: str) -> modal.Function[..., str, str]:
    return modal.Function.from_name("deployed", name)


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Fill a state folder and stop the server."""
    state_dir = tmp_path_factory.mktemp("state")
    found: dict[str, object] = {"state_dir": state_dir}
    with Emulator(state_dir) as emulator, connected(emulator):
        deploy()
        done, failed = function("say").spawn("kept"), function("fail").spawn()
        done.get()
        with pytest.raises(ValueError, match="on purpose"):
            failed.get()
        running = function("sleep").spawn(600)
        wait_until(lambda: emulator.calls("sleep")[-1].inputs[0].task_id, "the start of the input")
        modal.Secret.objects.create("kept-secret", {"A": "1"})
        volume = modal.Volume.from_name("kept-volume", create_if_missing=True)
        with volume.batch_upload() as batch:
            batch.put_file(APP, "/app.py")
        modal.Dict.from_name("kept-dict", create_if_missing=True)["key"] = "value"
        found |= {
            "done": done.object_id,
            "failed": failed.object_id,
            "running": running.object_id,
            "app_id": emulator.calls("say")[-1].app_id,
        }
    return found


@pytest.fixture(scope="module")
def after(before: dict[str, object]) -> object:
    with Emulator(Path(str(before["state_dir"]))) as emulator, connected(emulator):
        yield emulator


def test_a_deployed_app_can_be_called(after: Emulator) -> None:
    assert function("answer").remote() == 42
    greeter = modal.Cls.from_name("deployed", "Greeter")
    assert greeter(name="again").greet.remote() == "hello again"


def test_finished_results_can_be_read(after: Emulator, before: dict[str, object]) -> None:
    assert modal.FunctionCall.from_id(str(before["done"])).get() == "kept"
    with pytest.raises(ValueError, match="on purpose"):
        modal.FunctionCall.from_id(str(before["failed"])).get()


def test_an_unfinished_call_says_what_happened(after: Emulator, before: dict[str, object]) -> None:
    with pytest.raises(InternalFailure, match="emulator was stopped while"):
        modal.FunctionCall.from_id(str(before["running"])).get()


def test_volumes_secrets_and_dicts_are_kept(after: Emulator) -> None:
    content = b"".join(modal.Volume.from_name("kept-volume").read_file("/app.py"))
    assert content == APP.read_bytes()
    modal.Secret.from_name("kept-secret").hydrate()
    assert modal.Dict.from_name("kept-dict")["key"] == "value"


def test_logs_are_kept(after: Emulator, before: dict[str, object]) -> None:
    lines = [line.text for line in after.logs(str(before["app_id"]))]
    assert "kept 0\n" in lines


def test_redeploying_continues_the_versions(after: Emulator) -> None:
    app = next(each for each in after.apps() if each.name == "deployed")
    deploy()
    again = next(each for each in after.apps() if each.name == "deployed")
    assert (again.app_id, again.version) == (app.app_id, app.version + 1)


def deploy_on(image: modal.Image, name: str) -> None:
    app = modal.App(name, image=image)
    app.function(serialized=True, name="length")(len)
    app.deploy()


@pytest.fixture
def reused_base(tmp_path: Path) -> tuple[Path, list[ImageRecord]]:
    """Deploy an image that stands on another, then the other one again."""
    base = modal.Image.debian_slim()
    with Emulator(tmp_path) as emulator, connected(emulator):
        deploy_on(base.pip_install("x1"), "above")
        deploy_on(base, "base")
        deploy_on(base, "above")
        return tmp_path, emulator.images()


def test_images_and_apps_keep_their_order(reused_base: tuple[Path, list[ImageRecord]]) -> None:
    state_dir, images = reused_base
    with Emulator(state_dir) as emulator:
        assert emulator.images() == images
        assert [app.name for app in emulator.apps()] == ["above", "base"]


def test_images_that_were_written_before_their_base_are_read(
    reused_base: tuple[Path, list[ImageRecord]],
) -> None:
    state_dir, images = reused_base
    assert "x1" in images[1].packages
    with closing(sqlite3.connect(state_dir / "state.sqlite")) as database, database:
        # as the emulator did until it kept the place of what is replaced
        database.execute(
            "replace into objects select kind, id, data from objects where id = ?",
            (images[0].image_id,),
        )
    with Emulator(state_dir) as emulator:
        assert emulator.images() == images


def test_an_old_token_is_not_accepted_by_the_next_server(
    after: Emulator, before: dict[str, object]
) -> None:
    assert after.environment["MODAL_TOKEN_SECRET"].startswith("as-")
    with Emulator() as other:
        assert other.environment["MODAL_TOKEN_SECRET"] != after.environment["MODAL_TOKEN_SECRET"]


def test_without_a_state_folder_nothing_is_kept(after: Emulator) -> None:
    with Emulator() as emulator, connected(emulator), pytest.raises(NotFoundError):
        modal.Secret.from_name("kept-secret").hydrate()
