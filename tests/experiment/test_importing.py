"""Experiments are imported from import paths, and import paths made from classes."""

from __future__ import annotations

import inspect
import io
import subprocess
import sys
from pathlib import Path

import pytest

from ml_experiments.errors import ExperimentPathError
from ml_experiments.experiment.importing import load_experiment, path_of
from tests.support.experiments import Fit, train


def test_a_class_in_a_module_is_found_again_by_its_path() -> None:
    path, root = path_of(Fit)
    assert path == "tests.support.experiments:Fit"
    assert root == str(Path(__file__).parents[2])
    assert load_experiment(path) is Fit
    assert load_experiment(path_of(train)[0]) is train


def test_a_class_defined_in_a_function_is_refused() -> None:
    class Local:
        def __init__(self, config: object) -> None:
            pass

        def run(self) -> None:
            """Do nothing."""

    with pytest.raises(ExperimentPathError, match="top level of its module"):
        path_of(Local)


@pytest.mark.parametrize("target", [3, "text", [], object()])
def test_what_is_no_class_or_function_is_refused(target: object) -> None:
    with pytest.raises(ExperimentPathError, match="not a class or a function"):
        path_of(target)  # type: ignore[arg-type]


def run_python(code: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments, "-c", code] if code else [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    return done.stdout + done.stderr


SCRIPT = """
from ml_experiments import run_experiment

class Mine:
    def __init__(self, config): ...
    def run(self): return "ran"

if __name__ == "__main__":
    print(run_experiment(Mine).to_dict()["results"])
"""


def test_a_class_of_the_script_itself_runs(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert run_python("", tmp_path, "script.py") == "ran\n"
    assert run_python("", tmp_path, "-m", "script") == "ran\n"


def test_a_failing_import_names_the_cause_and_a_missing_one_the_package(tmp_path: Path) -> None:
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    with pytest.raises(ExperimentPathError, match="ZeroDivisionError: division by zero"):
        load_experiment("broken_module.Thing", [str(tmp_path)])
    (tmp_path / "exits.py").write_text("import sys; sys.exit('bye')\n")
    with pytest.raises(ExperimentPathError, match="SystemExit: bye"):
        load_experiment("exits.Thing", [str(tmp_path)])
    (tmp_path / "needs_cv2.py").write_text("import cv2_not_here.sub\n")
    with pytest.raises(ExperimentPathError, match=r"pip install cv2_not_here .*--pip cv2_"):
        load_experiment("needs_cv2.Thing", [str(tmp_path)])
    (tmp_path / "needs_more.py").write_text("import click.testin\n")
    told = r"click does not have \(did you mean 'testing'\?\) \(imported in .*needs_more\.py:1\)"
    with pytest.raises(ExperimentPathError, match=told):
        load_experiment("needs_more.Thing", [str(tmp_path)])
    (tmp_path / "a_namespace" / "one").mkdir(parents=True)
    (tmp_path / "needs_two.py").write_text("import a_namespace.two\n")
    with pytest.raises(ExperimentPathError, match="install the package that has it"):
        load_experiment("needs_two.Thing", [str(tmp_path)])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class Stop(BaseException): pass\n\nraise Stop('x')", "Stop: x"),
        ("import asyncio\n\nraise asyncio.CancelledError", "CancelledError"),
        ("\n\nraise GeneratorExit", "GeneratorExit"),
        ("\n\ndef __getattr__(name): raise ValueError(name)", "ValueError: run"),
        ("\n\ninput()", "run it with --debug"),
    ],
)
def test_whatever_an_import_raises_is_shown_with_its_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    file = tmp_path / "raises.py"
    file.write_text(source)
    with pytest.raises(ExperimentPathError) as caught:
        load_experiment(f"{file}:run")
    assert message in str(caught.value)
    assert f'{file}", line 3' in str(caught.value)


def test_a_name_that_is_not_there_lists_the_experiments_that_are() -> None:
    with pytest.raises(ExperimentPathError) as caught:
        load_experiment("tests.support.experiments.Plane")
    assert "did you mean 'Plain'" in str(caught.value)
    assert "Fit" in str(caught.value)
    assert "NoRun" not in str(caught.value)
    with pytest.raises(ExperimentPathError, match=r"did you mean 'train'\?"):
        load_experiment("tests.support.experiments.trian")


def test_what_a_message_says_to_write_is_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fits.py").write_text(
        "class Settings: ...\nclass Base:\n    def __init__(self, config): ...\n"
        "    def run(self): ...\nclass Fit(Base): ...\n"
    )
    (tmp_path / "renewed.py").write_text(
        "from fits import Base, Fit\nclass Other(Fit): ...\nclass Fit(Other): ...\n"
        "class Base(Base):\n    def run(self): ...\n"
    )
    for path, written in (
        ("fits", "fits.py:Base"),
        ("fits.py", "fits.py:Base"),
        ("fits.py::Fit", "fits.py:Fit"),
        ("fits/Fit", "fits.py:Fit"),
        ("fits.Fit()", "fits.py:Fit"),
        ("fits.Fit.run", "fits:Fit"),
        ("fits:Base.run", "fits:Base"),
        # of classes that are named like what they derive from
        ("renewed.py", "renewed.py:Base"),
    ):
        with pytest.raises(ExperimentPathError, match=rf"{written}$"):
            load_experiment(path, [str(tmp_path)])
        assert inspect.isclass(load_experiment(written, [str(tmp_path)]))


def test_a_file_alone_and_an_async_experiment_say_what_to_write(tmp_path: Path) -> None:
    (tmp_path / "waits.py").write_text(
        "async def train(config): ...\n"
        "class Train:\n    def __init__(self, config): ...\n    async def run(self): ...\n"
    )
    with pytest.raises(ExperimentPathError, match=r"\(Train\), as in .*waits\.py:Train"):
        load_experiment(str(tmp_path / "waits.py"))
    for name in ("train", "Train"):
        with pytest.raises(ExperimentPathError, match=r"is async.*asyncio\.run"):
            load_experiment(f"waits.{name}", [str(tmp_path)])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class A:\n    def run(self): ...", r"write def __init__\(self, config\)"),
        ("class A:\n    def __init__(self, lr=0.1, n=1): ...\n    def run(self): ...", "takes lr"),
        (
            "import dataclasses\n@dataclasses.dataclass\nclass A:\n    lr: float\n"
            "    def run(self): ...",
            "takes lr where the config goes.* make it a function with these parameters",
        ),
        (
            "class A:\n    def __init__(self, config): ...\n    def run(self, x): ...",
            r"without arguments: missing a required argument: 'x'; write def run\(self\)",
        ),
        (
            "import abc\nclass A(abc.ABC):\n    def __init__(self, config): ...\n"
            "    @abc.abstractmethod\n    def run(self): ...",
            "is abstract; name a class that defines run",
        ),
        ("import enum\nclass A(enum.Enum):\n    X = 1\n    def run(self): ...", "is an enum"),
        (
            "import typing\nclass A(typing.Protocol):\n    def run(self): ...",
            "is a protocol; name a class that implements it",
        ),
        (
            "import threading\nclass A(threading.Thread):\n    def run(self): ...",
            "takes group where the config goes",
        ),
        ("def A(config):\n    yield 1", "is a generator.* in a list, and return that"),
        (
            "class A:\n    def __init__(self, config): ...\n    def run(self): yield 1",
            r"A\.run\(\) is a generator",
        ),
        ("from . import other\ndef A(config): ...", "without the dot"),
    ],
)
def test_what_can_not_run_is_told_before_it_starts_with_what_to_write(
    code: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "wrong.py").write_text(code)
    with pytest.raises(ExperimentPathError, match=f"(?s){message}"):
        load_experiment(f"{tmp_path}/wrong.py:A")
    sys.modules.pop("wrong", None)


@pytest.mark.parametrize(
    "code",
    [
        "class A:\n    def __init__(self, cfg=None, device='cpu'): ...\n    def run(self): ...",
        "class A:\n    def __init__(self, config): ...\n    @staticmethod\n    def run(): ...",
        "class A:\n    def __init__(self, config): ...\n    @classmethod\n    def run(cls): ...",
        "class A:\n    def __init__(self, config): ...\n    def run(self, n=1, *more): ...",
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    config: dict\n"
        "    def run(self): ...",
    ],
)
def test_unusual_classes_that_can_run_are_taken(code: str, tmp_path: Path) -> None:
    (tmp_path / "unusual.py").write_text(code)
    assert inspect.isclass(load_experiment(f"{tmp_path}/unusual.py:A"))
    sys.modules.pop("unusual", None)


def test_a_nested_class_is_written_after_a_colon(tmp_path: Path) -> None:
    (tmp_path / "nests.py").write_text(
        "class Outer:\n    class Inner:\n        def __init__(self, config): ...\n"
        "        def run(self): ...\n"
    )
    with pytest.raises(ExperimentPathError, match=r"is a class, .* write nests:Outer\.Inner"):
        load_experiment("nests.Outer.Inner", [str(tmp_path)])
    assert load_experiment("nests:Outer.Inner", [str(tmp_path)]).__name__ == "Inner"


def test_a_value_that_is_no_experiment_says_what_it_is() -> None:
    with pytest.raises(ExperimentPathError, match="is of type module, not a class"):
        load_experiment("tests.support.experiments.ctypes")


def test_the_folders_of_the_experiment_at_hand_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper_on_both_sides.py").write_text(f"SIDE = {name!r}\n")
        (tmp_path / name / f"alone_{name}.py").write_text("def train(config): ...\n")
    (tmp_path / "left" / "helped.py").write_text(
        "import helper_on_both_sides\ndef train(config):\n    return helper_on_both_sides.SIDE\n"
    )
    for path in ("left/alone_left.py", "right/alone_right.py"):
        load_experiment(f"{tmp_path}/{path}:train")
    assert load_experiment(f"{tmp_path}/left/helped.py:train")({}) == "left"
