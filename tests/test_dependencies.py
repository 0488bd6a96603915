"""Every third-party module that is imported is declared in pyproject.toml, and the reverse."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ml_experiments
from ml_experiments.experiment.pip_names import PIP_NAMES

PROJECT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("ml_experiments", "modal_emulator")
# import name -> distribution, where PIP_NAMES, which users see, has no reason to hold it
DISTRIBUTIONS = {**PIP_NAMES, "google.protobuf": "protobuf", "modal_proto": "modal"}
# the plugin for pytest is imported by pytest itself, so pytest is there
BROUGHT_BY_THE_CALLER = {"modal_emulator/pytest_plugin.py": {"pytest"}}
# not imported by name: transformers, diffusers and accelerate load them
LOADED_BY_OTHERS = {"accelerate", "peft", "tokenizers", "torchao", "torchsde"}
LOADED_BY_OTHERS |= {"cmaes", "scipy"}  # by optuna

# torch and safetensors, where the user's own models need them: devices, checkpoints
TORCH_OF_THE_USER = ("context.py", "checkpoints.py", "random_state.py")


def declared(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


CORE = declared(PYPROJECT["project"]["dependencies"])
EXTRAS = {
    name: declared(requirements)
    for name, requirements in PYPROJECT["project"]["optional-dependencies"].items()
}


def imported(file: Path) -> set[str]:
    """Return the distributions that a file imports, anywhere in it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    modules = [
        name
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [str(node.module)]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    return {
        canonicalize_name(distribution_of(module))
        for module in modules
        if module.partition(".")[0] not in {*sys.stdlib_module_names, *PACKAGES}
    }


def distribution_of(module: str) -> str:
    top = module.partition(".")[0]
    two = ".".join(module.split(".")[:2])  # google.protobuf
    return DISTRIBUTIONS.get(two) or DISTRIBUTIONS.get(top) or top


def files() -> list[Path]:
    return [file for package in PACKAGES for file in sorted((PROJECT / package).rglob("*.py"))]


def extras_of(file: Path) -> set[str]:
    """Return what may be imported in a file besides the core: the extras of its part."""
    name = file.relative_to(PROJECT).as_posix()
    if name.startswith("ml_experiments/tasks/text_to_image/"):
        return EXTRAS["diffusion"] | EXTRAS["diffusion-extras"]
    if name.startswith("ml_experiments/tasks/tiny_digits/"):
        return EXTRAS["diffusion"] | EXTRAS["training"]
    if name.startswith("ml_experiments/serialization/") or name == "ml_experiments/runs/search.py":
        return EXTRAS["results"]
    if name == "ml_experiments/runner/sweeps/study.py":
        return EXTRAS["sweep"]
    if name == "ml_experiments/runner/bench/plot.py":
        return EXTRAS["plot"]
    if name.removeprefix("ml_experiments/experiment/") in TORCH_OF_THE_USER:
        return EXTRAS["diffusion"] | EXTRAS["diffusion-extras"]
    if name.startswith("ml_experiments/backends/slurm/"):
        return EXTRAS["slurm"]
    if name == "ml_experiments/execution/launch/agent.py":  # the launchers are the user's, too
        return {"accelerate", "torch"}
    return BROUGHT_BY_THE_CALLER.get(name, set())


def test_every_import_is_declared() -> None:
    undeclared = [
        f"{file.relative_to(PROJECT)} imports {name}"
        for file in files()
        for name in sorted(imported(file) - CORE - extras_of(file))
    ]
    assert undeclared == []


def test_everything_declared_is_imported() -> None:
    used = {name for file in files() for name in imported(file)}
    for script in (PROJECT / "examples").glob("*.py"):
        used |= imported(script)
    every_extra = set().union(*EXTRAS.values())
    assert CORE - used == set()
    assert every_extra - used - LOADED_BY_OTHERS == set()


def test_what_tests_need_is_in_no_extra() -> None:
    groups = PYPROJECT["dependency-groups"]
    for group in ("test", "lint", "docs", "release"):
        assert declared(groups[group]).isdisjoint(set().union(*EXTRAS.values())), group


def test_the_version_stands_in_one_place() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert importlib.metadata.version("ml-experiments") == ml_experiments.__version__


def test_the_gpu_image_asks_for_what_the_package_needs() -> None:
    file = PROJECT / "ml_experiments/backends/modal/gpu_image/requirements-gpu.in"
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line]
    assert declared([line for line in lines if not line.startswith("#")]) >= CORE


def test_the_gpu_image_holds_all_that_pictures_can_need() -> None:
    lock = PROJECT / "ml_experiments/backends/modal/gpu_image/requirements-gpu.lock"
    locked = declared([line.split()[0] for line in lock.read_text(encoding="utf-8").splitlines()])
    assert locked >= EXTRAS["diffusion"] | EXTRAS["diffusion-extras"]


def test_the_supported_range_of_modal_is_pinned() -> None:
    dependencies = PYPROJECT["project"]["dependencies"]
    assert any(d.startswith("modal") and "<1.7" in d for d in dependencies)
