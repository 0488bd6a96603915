"""The name by which pip finds the package of a module."""

from __future__ import annotations

import pytest

from ml_experiments.experiment.pip_names import pip_name


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("yaml", "PyYAML"),
        ("PIL.Image", "pillow"),
        ("sklearn.neighbors", "scikit-learn"),
        ("torch", "torch"),
        ("my_package.inner", "my_package"),
    ],
)
def test_a_module_is_in_a_package_that_pip_can_install(module: str, package: str) -> None:
    assert pip_name(module) == package
