"""`create_gpu_function`: what a function gets, and to which app it goes."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest

from ml_experiments.core import modal_runner
from ml_experiments.core.modal_runner import create_gpu_function
from ml_experiments.errors import BackendError, ConfigError, Error, GpuTypeError
from modal_emulator import Emulator
from tests.core.conftest import Modal

DEFINE = """
    from ml_experiments.core.modal_runner import create_gpu_function

    @create_gpu_function(gpu_type="t4")
    def where() -> str:
        return __name__
"""
Load = Callable[..., ModuleType]


def write(project: Path, name: str, source: str) -> str:
    (project / name).parent.mkdir(exist_ok=True, parents=True)
    (project / name).write_text(textwrap.dedent(source))
    return name


def newest(emulator: Emulator, name: str) -> Any:
    return emulator.functions(name)[-1]


@pytest.fixture
def load(project: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Write a file and import it, as `modal run` and `modal deploy` do."""

    def load(name: str, source: str = DEFINE) -> ModuleType:
        file = project / write(project, name, source)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, file.stem, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.slow
def test_it_works_in_a_users_own_file(
    modal_emulator: Emulator, project: Path, run_modal: Modal
) -> None:
    file = write(
        project,
        "train.py",
        """
        import os
        from ml_experiments.core.modal_runner import create_gpu_function

        @create_gpu_function(gpu_type="a100", timeout=7200, memory=32768)
        def my_custom_training():
            print("on", os.environ["MODAL_EMULATOR_GPU"], os.environ["HF_HOME"])

        @create_gpu_function("h100:2,a100-80gb", cpu=4.0, secrets=["for-training"])
        def with_everything(): ...
        """,
    )
    run_modal("secret", "create", "for-training", "A=b", "--force")
    assert "on A100-40GB /cache/huggingface" in run_modal("run", f"{file}::my_custom_training")
    first = newest(modal_emulator, "my_custom_training")
    assert first.gpus == ("A100-40GB",)
    assert (first.timeout_s, first.memory_mb, first.cpu) == (7200, (32768, None), None)
    assert first.volumes["/cache"].name == "hf-model-cache"
    second = newest(modal_emulator, "with_everything")
    assert second.gpus == ("H100:2", "A100-80GB")
    assert (second.timeout_s, second.memory_mb, second.cpu) == (3600, None, (4.0, None))
    assert [use.name for use in second.secrets] == ["for-training"]
    assert "App deployed" in run_modal("deploy", file)


@pytest.mark.slow
def test_two_files_that_are_deployed_keep_their_functions(
    modal_emulator: Emulator, project: Path, run_modal: Modal
) -> None:
    for name in ("first.py", "second.py"):
        assert "App deployed" in run_modal("deploy", write(project, name, DEFINE))
    caller = """
        import modal
        for app in ("ml-experiments-first", "ml-experiments-second"):
            print(modal.Function.from_name(app, "where").remote())
    """
    done = subprocess.run(
        [sys.executable, write(project, "caller.py", caller)],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout == "first\nsecond\n", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_app_however_the_file_is_started(
    modal_emulator: Emulator, project: Path, run_modal: Modal
) -> None:
    main = 'if __name__ == "__main__":\n    with where.app.run():\n        print(where.remote())\n'
    write(project, "lab/__init__.py", "")
    (project / "lab" / "tune.py").write_text(textwrap.dedent(DEFINE) + main)
    before = len(modal_emulator.apps())
    run_modal("run", "lab/tune.py::where")
    run_modal("run", "-m", "lab.tune::where")
    run_modal("deploy", "-m", "lab.tune")
    run_modal("deploy", "lab/tune.py")
    for start in (["lab/tune.py"], ["-m", "lab.tune"]):
        done = subprocess.run(
            [sys.executable, *start],
            cwd=project,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.stdout in ("tune\n", "lab.tune\n"), done.stderr
    used = {app.description for app in modal_emulator.apps()[before:]}
    assert used == {"ml-experiments-lab.tune"}


def test_the_functions_of_a_file_share_its_app(load: Load) -> None:
    more = textwrap.dedent(DEFINE) + textwrap.dedent(DEFINE).replace("where", "also")
    module = load("training.py", more)
    assert module.app.name == "ml-experiments-training"
    assert module.also.app is module.where.app is module.app


def test_a_files_own_app_gets_its_functions(load: Load) -> None:
    own = load("own.py", f"    import modal\n    app = modal.App('mine'){DEFINE}")
    assert own.where.app is own.app
    assert own.app.name == "mine"
    line = "    from ml_experiments.core.modal_runner import app"
    documented = load("documented.py", f"{line}{DEFINE}")
    assert documented.where.app is modal_runner.app


def test_another_app_than_modals_under_the_name_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"web\.py has a Web under the name 'app'.*rename it"):
        load("web.py", f"    class Web: ...\n    app = Web(){DEFINE}")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my_train-2.py", r"ml-experiments-my_train-2"),
        ("my train.py", r"ml-experiments-my-train-\w{8}"),
        ("训练.py", r"ml-experiments----\w{8}"),
        (f"{'long_' * 20}.py", r"ml-experiments-(long_)+\w*-\w{8}"),
    ],
)
def test_an_app_has_a_name_that_modal_takes(load: Load, file: str, name: str) -> None:
    found = load(file).app.name
    assert re.fullmatch(name, found)
    assert len(found) <= 64


def test_files_have_different_apps_whose_names_modal_would_not_take(load: Load) -> None:
    names = [f"{'long_' * 20}{number}.py" for number in range(2)]
    assert len({load(name).app.name for name in [*names, "训练.py", "评估.py"]}) == 4


def decorator_of_a_library(function: Callable[[], str]) -> Callable[[], str]:
    @functools.wraps(function)
    def wrapper() -> str:
        return f"wrapped {function()}"

    return wrapper


@pytest.mark.slow
def test_decorators_in_between_are_not_taken_for_the_users_file(
    modal_emulator: Emulator, load: Load
) -> None:
    module = load(
        "between.py",
        """
        import modal
        from ml_experiments.core.modal_runner import create_gpu_function
        from tests.core.test_create_gpu_function import decorator_of_a_library

        @create_gpu_function()
        @decorator_of_a_library
        def wrapped(): ...

        @create_gpu_function()
        @modal.concurrent(max_inputs=4)
        def concurrent(): ...
        """,
    )
    assert module.wrapped.app is module.concurrent.app is module.app
    assert "app" not in globals()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"timeout": 0}, "timeout is 0; it must be a whole number of seconds from 1 to 86400"),
        ({"timeout": 90_000}, "timeout is 90000"),
        ({"timeout": 1.5}, "timeout is 1.5"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": "3600"}, "timeout is '3600'"),
        ({"timeout": None}, "timeout is None"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"cpu": -1}, "cpu is -1; it must be a number of cores above 0"),
        ({"cpu": 0}, "cpu is 0"),
        ({"cpu": True}, "cpu is True"),
        ({"cpu": "4"}, "cpu is '4'"),
        ({"cpu": float("inf")}, "cpu is inf"),
        ({"memory": -5}, "memory is -5; it must be a whole number of MiB above 0"),
        ({"memory": 0}, "memory is 0"),
        ({"memory": 0.5}, "memory is 0.5"),
        ({"memory": True}, "memory is True"),
        ({"memory": "32768"}, "memory is '32768'"),
    ],
)
def test_an_amount_that_modal_does_not_offer_is_refused_at_once(
    arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(BackendError) as e:
        create_gpu_function(**arguments)
    assert says in str(e.value)


@pytest.mark.parametrize("gpu_type", ["a1000", "", None, 100])
def test_a_gpu_type_is_refused_at_once(gpu_type: Any) -> None:
    with pytest.raises(GpuTypeError) as e:
        create_gpu_function(gpu_type)
    assert "t4, l4, a10g" in str(e.value)


def test_a_secret_that_is_no_list_is_refused_at_once() -> None:
    with pytest.raises(Error, match=r"write a list: secrets=\['my-keys'\]"):
        create_gpu_function(secrets="my-keys")


def test_it_says_how_it_is_written() -> None:
    with pytest.raises(Error, match=r"write @create_gpu_function\(\)"):
        create_gpu_function(len)  # type: ignore[arg-type]
    with pytest.raises(Error, match=r"Trainer is a class; write @app\.cls\("):

        @create_gpu_function("t4")
        class Trainer: ...


def test_whole_amounts_of_any_kind_are_taken(load: Load) -> None:
    source = DEFINE.replace('"t4"', '"t4", timeout=1.5 * 3600, memory=0.5 * 1024, cpu=0.5')
    assert isinstance(load("amounts.py", source).where, modal.Function)
