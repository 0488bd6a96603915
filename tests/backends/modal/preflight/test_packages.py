"""Imported packages against the image's lock."""

from __future__ import annotations

import importlib.metadata
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ml_experiments.backends.modal.preflight.imports import Import
from ml_experiments.backends.modal.preflight.packages import (
    INPUT_FILE,
    LOCK_FILE,
    missing_packages,
    read_lock,
)
from ml_experiments.errors import PreflightError
from tests.support.torch_values import needs_torch

PROJECT = Path(__file__).parents[4]


def imported(module: str, *names: str, optional: bool = False) -> Import:
    return Import(module, names, Path("exp.py"), 7, optional)


@pytest.mark.parametrize(
    "module",
    ["torch.nn", "PIL.Image", "sklearn", "yaml", "dateutil", "huggingface_hub", "google.protobuf"],
)
def test_what_the_lock_has_under_another_name_is_present(module: str) -> None:
    assert missing_packages([imported(module)], read_lock()) == ()


def test_a_missing_package_is_named_with_its_place_and_the_fix() -> None:
    [missing] = missing_packages([imported("einops.layers")], read_lock())
    text = "exp.py:7 imports einops.layers: the image has no package 'einops'; add it with"
    assert str(missing) == f"{text} --pip einops"


def test_the_package_of_a_missing_import_may_have_another_name() -> None:
    [missing] = missing_packages([imported("skimage")], read_lock())
    assert missing.distribution == "scikit-image"


def test_a_requirement_makes_its_package_present() -> None:
    requirements = [Requirement("einops>=0.8"), Requirement("Scikit_Image[optional]==0.25")]
    needed = [imported("einops"), imported("skimage.io")]
    assert missing_packages(needed, read_lock(), requirements) == ()


def test_a_requirement_for_another_platform_makes_nothing_present() -> None:
    requirements = [Requirement("einops; sys_platform == 'win32'")]
    [missing] = missing_packages([imported("einops")], read_lock(), requirements)
    assert missing.distribution == "einops"
    requirements = [Requirement("einops; sys_platform == 'linux' and python_version < '3.12'")]
    assert missing_packages([imported("einops")], read_lock(), requirements) == ()


def test_an_optional_import_is_never_missing() -> None:
    assert missing_packages([imported("einops", optional=True)], read_lock()) == ()


def test_an_installed_package_is_named_by_its_own_metadata() -> None:
    # pytest's import name _pytest belongs to the distribution pytest
    [missing] = missing_packages([imported("_pytest.fixtures")], read_lock())
    assert missing.distribution == "pytest"


def test_the_lock_holds_all_that_its_input_names() -> None:
    lock = read_lock()
    for line in INPUT_FILE.read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), line


def test_the_lock_holds_all_that_this_package_needs() -> None:
    lock = read_lock()
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["diffusion"], *extras["training"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(lock[canonicalize_name(requirement.name)]), text


@needs_torch
def test_the_lock_pins_the_versions_that_the_tests_ran_with() -> None:
    lock = read_lock()
    for name in ("diffusers", "transformers", "torch", "peft", "accelerate", "huggingface_hub"):
        tested = importlib.metadata.version(name).partition("+")[0]
        assert lock[canonicalize_name(name)] == tested


def test_the_lock_names_no_machine_and_no_cpu_build() -> None:
    text = LOCK_FILE.read_text()
    assert "+cpu" not in text
    assert "file:" not in text
    assert " @ " not in text
    assert any(name.startswith("nvidia-") for name in read_lock())


def test_a_line_that_pins_nothing_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("torch>=2\n")
    with pytest.raises(PreflightError, match="torch>=2"):
        read_lock(file)
