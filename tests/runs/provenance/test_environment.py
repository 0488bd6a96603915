"""The manifest is true about the machine, and gathering it is harmless."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ml_experiments.runs.provenance.environment import describe_environment, package_versions


def test_the_environment_is_this_one() -> None:
    environment = describe_environment()
    assert environment["python"] == platform.python_version()
    assert environment["hostname"] == socket.gethostname()
    assert environment["executable"] == sys.executable
    assert 1 <= environment["cpu_count"] <= (os.cpu_count() or 1)
    assert 0 < environment["memory_bytes"] <= psutil.virtual_memory().total
    assert environment["packages"] == package_versions()
    assert isinstance(environment["gpus"], list)
    assert json.loads(json.dumps(environment, allow_nan=False)) == environment


def test_package_versions_are_those_that_are_installed() -> None:
    found = package_versions()
    assert list(found) == sorted(found)
    for name in ("pydantic", "pyyaml", "huggingface-hub", "ml-experiments", "typing-extensions"):
        assert found[name] == importlib.metadata.version(name)
    names = {
        re.sub(r"[-_.]+", "-", distribution.name).lower()
        for distribution in importlib.metadata.distributions()
    }
    assert set(found) == names


def test_a_package_that_comes_first_on_the_path_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pydantic-0.0.1.dist-info").mkdir()
    (tmp_path / "~broken-1.0.dist-info").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "missing"), "file.zip"])
    assert package_versions()["pydantic"] == "0.0.1"
    assert not any("broken" in name for name in package_versions())


def test_gathering_it_all_does_not_import_torch() -> None:
    code = """
import sys
from pathlib import Path
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.provenance.environment import describe_environment
describe_environment(); describe_code(Path.cwd())
assert not {"torch", "numpy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
