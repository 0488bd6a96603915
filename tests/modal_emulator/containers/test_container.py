"""What code in a container sees of this machine: what was shipped, and little else."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import emulated_calls as calls
import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import InternalFailure, NotFoundError

from modal_emulator import Emulator

pytestmark = pytest.mark.usefixtures("modal_emulator")
register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def surroundings(modal_emulator_server: Emulator) -> Iterator[dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch, calls.app.run():
        patch.setenv("LEAKED_FROM_THE_HOST", "1")
        yield calls.surroundings.remote()


def test_the_working_folder_is_root_with_the_shipped_file(surroundings: dict[str, Any]) -> None:
    assert surroundings["cwd"] == "/root"
    assert "emulated_calls.py" in surroundings["files"]


def test_the_hosts_environment_does_not_leak_in(surroundings: dict[str, Any]) -> None:
    env = surroundings["env"]
    assert "LEAKED_FROM_THE_HOST" not in env
    assert env["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    assert env["HOME"] == "/root"
    allowed = {"LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH"}
    inherited = {
        name
        for name, value in env.items()
        if os.environ.get(name) == value and not name.startswith("MODAL_")
    }
    assert inherited <= allowed | {"SSL_CERT_FILE", "SSL_CERT_DIR", "HOME", "PYTHONUNBUFFERED"}
    assert not {"MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET"} & set(env)


def test_modals_own_variables_are_set(surroundings: dict[str, Any]) -> None:
    env = surroundings["env"]
    assert env["MODAL_IS_REMOTE"] == "1"
    assert env["MODAL_TASK_ID"].startswith("ta-")
    assert env["MODAL_ENVIRONMENT"] == "main"


def test_a_function_without_a_gpu_sees_none(surroundings: dict[str, Any]) -> None:
    assert surroundings["env"]["CUDA_VISIBLE_DEVICES"] == ""
    assert surroundings["env"]["MODAL_EMULATOR_GPU"] == ""


def test_installed_packages_are_found_and_the_repository_is_not(
    surroundings: dict[str, Any],
) -> None:
    assert surroundings["found"] == {"click": True, "ml_experiments": False, "tests": False}
    assert surroundings["user_site"]


def test_an_unshipped_module_is_missing_as_on_modal(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local_neighbour.py").write_text("VALUE = 5\n")
    (tmp_path / "needs_neighbour.py").write_text(
        "import modal, local_neighbour\n"
        "app = modal.App('needs-neighbour')\n"
        "@app.function()\n"
        "def value():\n"
        "    return local_neighbour.VALUE\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import needs_neighbour

    with needs_neighbour.app.run(), pytest.raises(ModuleNotFoundError, match="local_neighbour"):
        needs_neighbour.value.remote()


def test_local_python_source_is_shipped(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shipped_neighbour.py").write_text("VALUE = 5\n")
    monkeypatch.syspath_prepend(tmp_path)
    image = modal.Image.debian_slim().add_local_python_source("shipped_neighbour")
    app = modal.App("ships")

    @app.function(image=image, serialized=True)
    def value() -> int:
        import shipped_neighbour

        return int(shipped_neighbour.VALUE)

    with app.run():
        assert value.remote() == 5


def test_subprocesses_of_a_container_see_no_more_than_it(modal_emulator: Emulator) -> None:
    app = modal.App("subprocess")

    @app.function(serialized=True)
    def find() -> str:
        import subprocess

        code = "import importlib.util; print(importlib.util.find_spec('ml_experiments'))"
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout

    with app.run():
        assert find.remote().strip() == "None"


def test_what_a_container_writes_does_not_reach_this_machine(modal_emulator: Emulator) -> None:
    app = modal.App("writes")

    @app.function(serialized=True)
    def write() -> str:
        path = Path("/root/written-by-a-container")
        path.write_text("x")
        return str(path)

    with app.run():
        assert not Path(write.remote()).exists()


def test_a_container_that_dies_while_starting_fails_the_call(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies_on_import.py").write_text(
        "import modal, os, sys\n"
        "app = modal.App('dies')\n"
        "if os.environ.get('MODAL_IS_REMOTE'):\n"
        "    print('out of luck', flush=True)\n"
        "    os._exit(41)\n"
        "@app.function()\n"
        "def never():\n"
        "    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import dies_on_import

    expected = pytest.raises(InternalFailure, match=r"exited with code 41(.|\n)*out of luck")
    with dies_on_import.app.run(), expected:
        dies_on_import.never.remote()


def test_a_startup_that_takes_too_long_is_a_timeout(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import modal, os, time\n"
        "app = modal.App('slow')\n"
        "if os.environ.get('MODAL_IS_REMOTE'):\n"
        "    time.sleep(60)\n"
        "@app.function(startup_timeout=2)\n"
        "def never():\n"
        "    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import slow_import

    expected = pytest.raises(modal.exception.FunctionTimeoutError, match="not ready 2 s after")
    with slow_import.app.run(), expected:
        slow_import.never.remote()


def test_definitions_that_differ_in_the_container_are_an_error(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "differs.py").write_text(
        "import modal, os\n"
        "app = modal.App('differs')\n"
        "remote = os.environ.get('MODAL_IS_REMOTE')\n"
        "secrets = [] if remote else [modal.Secret.from_dict({'A': '1'})]\n"
        "@app.function(secrets=secrets)\n"
        "def never():\n"
        "    return 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import differs

    with differs.app.run(), pytest.raises(InternalFailure, match="container got 2 object ids"):
        differs.never.remote()


def test_a_secret_that_was_deleted_fails_the_start_and_names_it(
    modal_emulator: Emulator,
) -> None:
    modal.Secret.objects.create("soon-deleted", {"A": "1"})
    app = modal.App("deleted-secret")

    @app.function(secrets=[modal.Secret.from_name("soon-deleted")], serialized=True)
    def never() -> int:
        return 1

    with app.run():
        modal.Secret.objects.delete("soon-deleted")
        with pytest.raises((InternalFailure, NotFoundError), match="not found"):
            never.remote()


def environment() -> dict[str, str]:
    return dict(os.environ)


def test_the_libraries_use_as_many_threads_as_cores_are_requested() -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    app = modal.App("threads")
    chosen = modal.Image.debian_slim().env({"OMP_NUM_THREADS": "7"})
    many = app.function(serialized=True, name="many", cpu=2.5, image=chosen)(environment)
    default = app.function(serialized=True, name="default")(environment)
    with app.run():
        found, not_asked = many.remote(), default.remote()
    assert [found[name] for name in names] == ["7", "3", "3"]
    assert not {*names} & {*not_asked}


def test_a_container_has_an_identity_token_that_nobody_accepts(
    surroundings: dict[str, Any],
) -> None:
    env = surroundings["env"]
    header, claims, signature = env["MODAL_IDENTITY_TOKEN"].split(".")
    decoded = json.loads(base64.urlsafe_b64decode(claims + "=="))
    assert decoded["container_id"] == env["MODAL_TASK_ID"]
    assert decoded["function_name"] == "surroundings"
    assert decoded["iss"] == "https://oidc.modal.com"
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["alg"] == "none"
    assert signature == ""


def working_folder() -> str:
    Path("written-here").write_text("x")
    return str(Path.cwd())


@pytest.mark.parametrize("folder", ["/workspace/app", "/usr/share/of-the-image", "/opt/app"])
def test_the_workdir_of_the_image_is_where_a_function_starts(folder: str) -> None:
    app = modal.App("workdir")
    first, last = folder.rsplit("/", 1)
    image = modal.Image.debian_slim().workdir(first).workdir(last)
    start = app.function(serialized=True, image=image)(working_folder)
    with app.run():
        assert start.remote() == folder
    assert not Path(folder).exists()


def write_everywhere(folders: list[str]) -> list[str]:
    for folder in folders:
        Path(folder, "from-a-container").write_text("x")
    return [folder for folder in folders if Path(folder, "from-a-container").exists()]


def test_a_container_can_write_into_the_folders_of_a_debian_image() -> None:
    folders = ["/opt", "/mnt", "/var", "/home", "/var/tmp", "/var/log", "/var/cache", "/tmp", "/"]
    app = modal.App("writable")
    write = app.function(serialized=True)(write_everywhere)
    with app.run():
        assert write.remote(folders) == folders
    assert not any(Path(folder, "from-a-container").exists() for folder in folders)


def number_of_cores() -> int:
    return len(os.sched_getaffinity(0))


@pytest.mark.skipif(sys.platform != "linux", reason="needs sched_setaffinity")
def test_the_limit_of_cpu_is_how_many_cores_a_container_runs_on() -> None:
    app = modal.App("cores")
    one = app.function(serialized=True, name="one", cpu=(0.5, 0.7))(number_of_cores)
    every = app.function(serialized=True, name="every", cpu=0.5)(number_of_cores)
    with app.run():
        assert (one.remote(), every.remote()) == (1, number_of_cores())
