"""What raises while an experiment is imported or described is shown where it was raised."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.cli.main import main
from ml_experiments.errors import ConfigError, Error, ExperimentPathError

RUN = "def run(): return 1\n"

# what the files hold, and what the message has to show, in this order
BROKEN_IMPORTS = {
    "in the module": (
        {"train.py": f"x = 1\ny = x / 0\n{RUN}"},
        ("importing train failed: ZeroDivisionError: division by zero", "train.py", "line 2"),
    ),
    "in a helper": (
        {"train.py": f"import helper\n{RUN}", "helper.py": "def f():\n    {}['lr']\n\nf()\n"},
        ("failed: KeyError: 'lr'", "train.py", "line 1", "helper.py", "line 4", "line 2, in f"),
    ),
    "syntax": (
        {"train.py": f"x = 1\nif x = 2:\n    pass\n{RUN}"},
        ("failed: SyntaxError: ", "train.py", "line 2", "if x = 2"),
    ),
    "syntax of a helper": (
        {"train.py": f"import helper\n{RUN}", "helper.py": "\n\ndef f(:\n"},
        ("failed: SyntaxError: ", "train.py", "line 1", "helper.py", "line 3", "def f(:"),
    ),
    "circular": (
        {
            "train.py": f"from helper import f\ny = 2\n{RUN}",
            "helper.py": "import other\ndef f(): pass\n",
            "other.py": "\nfrom helper import f\n",
        },
        ("failed: ImportError: ", "circular import", "helper.py", "line 1", "other.py", "line 2"),
    ),
    "decorator": (
        {"train.py": f"def timed(f):\n    raise TypeError('no')\n\n@timed\n{RUN}"},
        ("failed: TypeError: no", "train.py", "line 4", "line 2, in timed"),
    ),
    "missing": (
        {"train.py": f"import helper\n{RUN}", "helper.py": "x = 1\nimport no_such_package\n"},
        ("needs the module 'no_such_package'", "helper.py:2", "pip install no_such_package"),
    ),
    "missing by import_module": (
        {"train.py": f"import importlib\nimportlib.import_module('no_such_package')\n{RUN}"},
        ("needs the module 'no_such_package'", "train.py:2"),
    ),
    "missing without a name": (
        {"train.py": f"raise ModuleNotFoundError('build the kernels first')\n{RUN}"},
        ("failed: ModuleNotFoundError: build the kernels first", "train.py", "line 1"),
    ),
    "a cause": (
        {
            "train.py": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n"
            f"    raise RuntimeError('no steps') from e\n{RUN}"
        },
        ("failed: RuntimeError: no steps", "line 2", "ZeroDivisionError", "line 4"),
    ),
    "exits": (
        {"train.py": f"import sys\nsys.exit('no GPU here')\n{RUN}"},
        ("failed: SystemExit: no GPU here", "train.py", "line 2"),
    ),
    "a broken message": (
        {
            "train.py": "class Odd(Exception):\n    def __str__(self): return 1 / 0\n"
            f"raise Odd\n{RUN}"
        },
        ("failed: Odd: (its message could not be read: ZeroDivisionError)", "line 3"),
    ),
}


def assert_shows(message: str, expected: tuple[str, ...], folder: Path) -> None:
    """Check that a message has all parts in this order, and no file before the user's."""
    position = 0
    for part in expected:
        position = message.find(part, position)
        assert position >= 0, f"{part!r} is missing or too early in:\n{message}"
    files = re.findall(r'File "([^"]*)"', message)
    assert all(Path(file).is_relative_to(folder) for file in files[:1]), message
    for file in files[1:]:
        assert Path(file).is_relative_to(folder) or "site-packages" in file, message
    assert message.count("Traceback (most") <= 2, message


def write_all(folder: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        (folder / name).write_text(source)


@pytest.mark.parametrize("case", BROKEN_IMPORTS)
def test_what_fails_in_an_import_is_shown_with_file_and_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, expected = BROKEN_IMPORTS[case]
    write_all(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExperimentPathError) as e:
        run_experiment(f"{tmp_path}/train.py:run")
    assert_shows(str(e.value), expected, tmp_path)


CRASHES = "import ctypes\ndef crash(): ctypes.string_at(0)\n"


@pytest.mark.parametrize("when", ["in an import", "in a run"])
def test_of_a_crash_the_frames_of_the_user_are_shown(when: str, tmp_path: Path) -> None:
    call = "    crash()\n" if when == "in a run" else "    pass\ncrash()\n"
    (tmp_path / "train.py").write_text(f"{CRASHES}def run():\n{call}")
    if when == "in a run":
        error = run_experiment(f"{tmp_path}/train.py:run").error
        assert error is not None
        report = error.traceback
    else:
        with pytest.raises(ExperimentPathError) as e:
            run_experiment(f"{tmp_path}/train.py:run")
        report = str(e.value)
    files = [Path(file).name for file in re.findall(r'File "([^"]*)"', report)]
    assert files == ["__init__.py", "train.py", "train.py"]  # of ctypes


def test_the_command_line_shows_the_users_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, expected = BROKEN_IMPORTS["in a helper"]
    write_all(tmp_path, files)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as e:
        main(["run", "train:run"])
    assert e.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: importing train failed: KeyError: 'lr'\nTraceback")
    assert_shows(error, expected, tmp_path)


CONFIG = """
import pydantic
from ml_experiments import Experiment

class Train(Experiment):
    class Config(pydantic.BaseModel):
        lr: float = 0.1
{hook}
    def run(self): return 1
"""
VALIDATOR = """
        @pydantic.field_validator("lr")
        @classmethod
        def check(cls, value): return {}[value]
"""
SERIALIZER = """
        @pydantic.field_serializer("lr")
        def write(self, value): return {}[value]
"""
DEFAULT = """
        steps: int = pydantic.Field(default_factory=lambda: 1 / 0)
"""
SCHEMA = """
        @classmethod
        def __get_pydantic_core_schema__(cls, *_): raise LookupError("no schema")
"""
HUB_MODELS = """
    @staticmethod
    def hub_models(config): return [config.model_name]
"""
EXITS = VALIDATOR.replace("return {}[value]", "raise SystemExit('bad')")
BROKEN_HOOKS = {
    "validator": (VALIDATOR, ("checking the config of Train failed: KeyError: 0.5", "in check")),
    "validator that exits": (EXITS, ("checking the config of Train failed: SystemExit: bad",)),
    "default": (DEFAULT, ("Train failed: ZeroDivisionError", "train.py", "line 9, in <lambda>")),
    "serializer": (
        SERIALIZER,
        ("checking the config of Train failed: KeyError: 0.5", "train.py", "line 10, in write"),
    ),
    "debugger": (
        VALIDATOR.replace("return {}[value]", "breakpoint(); return value"),
        ("debugger that was opened in", "train.py, line 11 was left\n", "run --debug"),
    ),
    "schema": (SCHEMA, ("LookupError: no schema",)),
    "hub_models": (
        HUB_MODELS,
        ("hub_models() of Train failed: AttributeError", "train.py", "in hub_models"),
    ),
    "setup_fields": ("\n    setup_fields = 5\n", ("config of Train failed: TypeError",)),
    "a string of setup_fields": (
        '\n    setup_fields = ("model")\n',
        ("setup_fields is a string; write ('model',)",),
    ),
}


@pytest.mark.parametrize("case", BROKEN_HOOKS)
def test_what_a_validator_or_hook_raises_is_shown(case: str, tmp_path: Path) -> None:
    hook, expected = BROKEN_HOOKS[case]
    (tmp_path / "train.py").write_text(CONFIG.replace("{hook}", hook))
    with pytest.raises(Error) as e:
        run_experiment(f"{tmp_path}/train.py:Train", {"lr": 0.5})
    assert_shows(str(e.value), expected, tmp_path)


def test_a_preload_that_is_no_list_keeps_nothing_from_running(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "class Train:\n    preload = 5\n    def __init__(self, config): pass\n"
        "    def run(self): return 3\n"
    )
    assert run_experiment(f"{tmp_path}/train.py:Train").results == 3


def test_after_the_file_is_mended_the_same_backend_runs_it(tmp_path: Path) -> None:
    file = tmp_path / "train.py"
    file.write_text(CONFIG.replace("{hook}", VALIDATOR))
    with LocalBackend() as backend:
        with pytest.raises(ConfigError):
            run_experiment(f"{file}:Train", backend=backend, config={"lr": 0.5})
        file.write_text(CONFIG.replace("{hook}", ""))
        assert run_experiment(f"{file}:Train", {"lr": 0.5}, backend=backend).results == 1
