"""Which classes can be experiments, and where a module is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments import Experiment, run_experiment
from ml_experiments.errors import ExperimentPathError, PreflightError
from ml_experiments.experiment.importing import check_experiment


class Bare:
    def run(self) -> int:
        return 1


class NoConfig(Experiment):
    def __init__(self) -> None:
        pass

    def run(self) -> int:
        return 1


class ByName:
    def __init__(self, *, config: dict[str, int]) -> None:
        pass

    def run(self) -> int:
        return 1


class Variadic:
    def __init__(self, *args: int) -> None:
        pass

    def run(self) -> int:
        return 1


@pytest.mark.parametrize("kind", [Bare, NoConfig, ByName])
def test_a_class_that_takes_no_config_is_told_how(kind: type[object]) -> None:
    with pytest.raises(ExperimentPathError, match=r"write def __init__\(self, config\)"):
        check_experiment(kind, f"job:{kind.__name__}")


@pytest.mark.parametrize("kind", [Experiment, Variadic])
def test_a_class_that_takes_one_is_an_experiment(kind: type[object]) -> None:
    assert check_experiment(kind, "job:Any") is kind


def test_a_package_below_src_is_found_from_the_projects_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "below_src"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "values.py").write_text("value = 5\n")
    (package / "train.py").write_text(
        "from below_src.values import value\ndef run(): return value\n"
    )
    monkeypatch.chdir(tmp_path)
    assert run_experiment("below_src.train:run").results == 5
    (tmp_path / "below_src").mkdir()  # what stands in the root itself comes first
    with pytest.raises(ExperimentPathError):
        run_experiment("below_src.train:run")


def test_a_missing_extra_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "diffusers" else find(name)
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PreflightError, match=r"pip install 'ml_experiments\[diffusion\]'"):
        run_experiment("ml_experiments.tasks.text_to_image.TextToImageExperiment", {"prompt": "7"})
    assert not (tmp_path / "runs").exists()
