"""Images are recorded, not built; their environment and files reach containers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import image_app
import modal
import pytest
from modal.exception import InvalidError

from modal_emulator import Emulator
from modal_emulator.objects.image_records import ImageRecord


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with image_app.app.run():
        yield


@pytest.fixture
def recorded(modal_emulator: Emulator) -> ImageRecord:
    function = modal_emulator.functions("look")[-1]
    return next(each for each in modal_emulator.images() if each.image_id == function.image_id)


def test_packages_are_recorded(recorded: ImageRecord) -> None:
    assert {"torch==2.6.0", "diffusers>=0.35", "accelerate", "peft==0.17.0"} <= set(
        recorded.packages
    )
    assert "https://example.invalid/whl" not in recorded.packages
    assert recorded.apt_packages[-2:] == ("git", "ffmpeg")


def test_base_and_python_version_are_recorded(recorded: ImageRecord) -> None:
    assert recorded.base.startswith("python:3.11")
    assert recorded.python_version == "3.11"


def test_commands_with_quotes_and_semicolons_are_recorded(modal_emulator: Emulator) -> None:
    command = """python -c "import sys; print('it is')" && pip install 'einops>=0.8' tqdm"""
    image = modal.Image.debian_slim().run_commands(command, "echo it\\'s")
    app = modal.App("quoted", image=image)
    app.function()(image_app.download_weights)
    with app.run():
        assert modal_emulator.images()[-1].packages[-2:] == ("einops>=0.8", "tqdm")


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_the_packages_of_a_requirements_file_are_recorded(
    modal_emulator: Emulator, tmp_path: Path, installer: str
) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# pinned\n--prefer-binary\neinops==0.8.0  # shapes\n")
    app = modal.App("requirements")
    image = modal.Image.debian_slim()
    if installer == "pip":
        image = image.pip_install_from_requirements(str(requirements))
    else:
        image = image.uv_pip_install("tqdm", requirements=[str(requirements)])
    app.function(image=image)(image_app.download_weights)
    with app.run():
        packages = modal_emulator.images()[-1].packages
    added = packages[packages.index("einops==0.8.0") :]
    assert set(added) == ({"einops==0.8.0"} if installer == "pip" else {"einops==0.8.0", "tqdm"})


def test_a_build_function_is_recorded_and_not_run(recorded: ImageRecord) -> None:
    assert len(recorded.build_functions) == 1
    assert "def download_weights" in recorded.build_functions[0].definition


def test_environment_and_files_reach_the_container() -> None:
    found = image_app.look.remote()
    assert found["HF_HOME"] == "/cache/huggingface"
    assert found["QUOTED"] == "two words $NOT_EXPANDED"
    assert found["copied"] is True
    assert "image_app.py" in found["assets"]


def test_a_secret_wins_over_the_image() -> None:
    assert image_app.look.remote()["LATER"] == "from the secret"


def test_an_unknown_gpu_to_build_on_is_refused(modal_emulator: Emulator) -> None:
    image = modal.Image.debian_slim().run_commands("nvidia-smi", gpu="H1000")
    app = modal.App("refused-image", image=image)
    app.function()(image_app.download_weights)
    with pytest.raises(InvalidError, match="did you mean H100"), app.run():
        pytest.fail("the app ran")


def test_an_image_is_found_by_its_id(recorded: ImageRecord) -> None:
    image = modal.Image.from_id(recorded.image_id)
    app = modal.App("by-id", image=image)
    app.function()(image_app.download_weights)
    with app.run():
        assert image.object_id == recorded.image_id
