"""Images that are built: each has a Python and packages of its own, and what its steps wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import built_app
import modal
import pytest
from modal.exception import RemoteError, ServerWarning

from modal_emulator import Emulator
from modal_emulator.builds.pythons import HOST_VERSION, find_python
from modal_emulator.objects.layers import Layer, LayerStore
from modal_emulator.pytest_plugin import connected
from tests.support.image_builds import UV, needs_uv, own_layer_cache

pytestmark = needs_uv

PROJECT = """
[project]
name = "project"
version = "1"
requires-python = ">=3.11"
dependencies = ["iniconfig==2.1.0"]
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with own_layer_cache(tmp_path_factory.mktemp("cache")) as folder:
        yield folder


@pytest.fixture(scope="module")
def builder(cache: Path) -> Iterator[Emulator]:
    with Emulator(images="build") as emulator, connected(emulator):
        yield emulator


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "requirements.txt").write_text("six==1.16.0\n")
    (folder / "project").mkdir()
    (folder / "project" / "pyproject.toml").write_text(PROJECT)
    subprocess.run([UV, "lock", "-q"], cwd=folder / "project", check=True)
    return folder


def other_python() -> str | None:
    """Return the version of another Python that this machine has."""
    others = (version for version in ("3.12", "3.13", "3.11") if version != HOST_VERSION)
    return next((version for version in others if find_python(version, UV)), None)


def look(image: modal.Image) -> dict[str, object]:
    app = modal.App("looks")
    function = app.function(image=image)(built_app.look)
    with app.run():
        found: dict[str, object] = function.remote()
    return found


def test_a_container_has_what_the_steps_of_its_image_made_and_nothing_else(
    builder: Emulator, cache: Path, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(ServerWarning) as warned, modal.enable_output():
        found = look(built_app.make_image(project, HOST_VERSION))
    version = [int(part) for part in HOST_VERSION.split(".")]
    assert found == {
        "python": version,
        "own": ["iniconfig", "six", "tomli-w", "wrapt"],
        "foreign": [],
        "folder": "/opt/work",
        "greeting": "hello $NAME",
        "seen": ["six==1.16.0", "/opt/work", str(tuple(version)), "pip"],
        "weights": "tiny six",
        "copied": False,
        "tool": "a tool\na tool\n",
        "link": "seen",
        "empty": [],
        "added": True,
        "interpreter": "wrapt\n",
    }
    layers = [LayerStore(cache).get(each.image_id) for each in builder.images()]
    tops = {path.name for layer in layers if layer for path in layer.files.iterdir()}
    assert tops <= {"root", "opt", "usr", ".uv", ".0_requirements.txt"}
    printed = " ".join(capfd.readouterr().out.split())
    assert "+ six==1.16.0" in printed
    said = " ".join(str(each.message) for each in warned)
    for package in ("no-such-package", "missing-too"):
        assert f"{package}." in said


def test_a_layer_is_built_once_for_all_servers(
    builder: Emulator, cache: Path, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    image = modal.Image.debian_slim().pip_install("idna").run_commands("date +%N > /root/seen")
    image = image.run_commands("cp /root/seen /root/again")
    app = modal.App("again", image=image)
    app.function()(built_app.store_weights)
    layers = []
    for _ in range(2):
        with Emulator(images="build") as emulator, connected(emulator), app.run():
            layer = LayerStore(cache).get(emulator.images()[-1].image_id)
            assert layer is not None
            layers.append((layer.files / "root" / "again").read_text())
    assert layers[0] == layers[1]
    assert list((cache / "images").glob("building-*")) == []


def test_files_of_layers_that_are_built_on_each_other_are_hard_links(
    builder: Emulator, cache: Path
) -> None:
    base = modal.Image.debian_slim().pip_install("idna")
    app = modal.App("links", image=base.pip_install("six"))
    app.function()(built_app.store_weights)
    with app.run():
        ids = [each.image_id for each in builder.images() if each.packages[3:4] == ("idna",)]
        lower, *_, upper = [LayerStore(cache).get(image_id) for image_id in ids]
    assert lower is not None
    assert upper is not None
    files = [next(layer.env.rglob("idna/core.py")) for layer in (lower, upper)]
    assert files[0].samefile(files[1])
    assert not list(lower.env.rglob("six.py"))


@pytest.mark.parametrize(
    ("step", "log"),
    [
        ("echo first; echo last words >&2; exit 3", "last words\n.* exited with code 3"),
        ("pip install no-such-package-at-all-here", "package-at-all-here exited with code 1"),
        ("touch /etc/x", "Read-only.*can write to /root, /tmp and the environment, and"),
    ],
)
def test_a_failing_step_is_a_build_error_with_its_log(
    builder: Emulator, step: str, log: str
) -> None:
    app = modal.App("fails", image=modal.Image.debian_slim().run_commands(step))
    app.function()(built_app.store_weights)
    with pytest.raises(RemoteError, match=f"(?s)failed.*{log}"), app.run():
        pytest.fail("the app ran")


def test_a_failing_build_function_is_a_build_error_with_its_traceback(builder: Emulator) -> None:
    image = modal.Image.debian_slim().run_function(built_app.store_weights, args=("tiny",))
    app = modal.App("fails", image=image)
    app.function()(built_app.look)
    with pytest.raises(RemoteError, match="No module named 'six'"), app.run():
        pytest.fail("the app ran")


def test_an_image_has_the_python_that_it_asks_for(builder: Emulator, project: Path) -> None:
    version = other_python()
    if version is None:
        pytest.skip("there is no other Python")
    image = modal.Image.debian_slim(python_version=version).run_commands("true")
    app = modal.App("other")
    function = app.function(image=image)(built_app.version)
    with app.run():
        assert function.remote() == version


def test_add_python_replaces_the_python_of_a_dockerfile(builder: Emulator, tmp_path: Path) -> None:
    version = other_python()
    if version is None:
        pytest.skip("there is no other Python")
    (tmp_path / "Dockerfile").write_text("FROM registry.example/system:1\nRUN echo one > /root/x")
    image = modal.Image.from_dockerfile(tmp_path / "Dockerfile", add_python=version)
    app = modal.App("added")
    function = app.function(image=image)(built_app.version)
    with pytest.warns(ServerWarning, match="without the system of registry"), app.run():
        assert function.remote() == version


def test_an_image_of_a_registry_says_what_is_missing(builder: Emulator) -> None:
    image = modal.Image.from_registry("nvidia/cuda:12.4.0-devel-ubuntu22.04", add_python="3.11")
    app = modal.App("cuda")
    function = app.function(image=image)(built_app.version)
    message = "without the system of nvidia/cuda:12.4.0-devel-ubuntu22.04"
    warned = pytest.warns(ServerWarning, match=message)
    with warned, app.run():
        assert function.remote() == "3.11"


def test_recorded_images_have_the_packages_of_this_environment() -> None:
    image = modal.Image.debian_slim().run_commands("exit 1")
    app = modal.App("recorded")
    function = app.function(image=image)(built_app.version)
    with Emulator(images="record") as emulator, connected(emulator), app.run():
        assert function.remote() == HOST_VERSION


def test_without_uv_images_are_recorded_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MODAL_EMULATOR_IMAGES")
    monkeypatch.setattr("modal_emulator.server.find_uv", lambda: None)
    with Emulator():
        assert "recorded and not built, because there is no uv" in caplog.text
    with pytest.raises(ValueError, match="can't be built, because there is no uv"):
        Emulator(images="build").__enter__()
    monkeypatch.setenv("MODAL_EMULATOR_IMAGES", "bild")
    with pytest.raises(ValueError, match='"build" or "record", not "bild"'):
        Emulator()


@pytest.mark.parametrize("change", [{"format": 2}, {"base_python": "/gone/python3"}])
def test_a_layer_that_is_of_no_use_here_is_built_again(
    tmp_path: Path, change: dict[str, object]
) -> None:
    store = LayerStore(tmp_path)

    def build() -> Layer:
        return store.finish("im-1", Layer(store.begin(None), "3.11", sys.executable, "/client"))

    record = build().folder / "layer.json"
    assert store.get("im-1") is not None
    record.write_text(json.dumps(json.loads(record.read_text()) | change))
    assert store.get("im-1") is None  # written by another version, or its Python is gone
    assert build() == store.get("im-1")
