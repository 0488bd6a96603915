"""An import path has parts, or an error that shows the right forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.errors import ExperimentPathError
from ml_experiments.experiment.reference import parse_experiment_path


@pytest.mark.parametrize(
    ("path", "module", "name"),
    [
        ("pkg.module.Class", "pkg.module", "Class"),
        ("pkg.module:Class", "pkg.module", "Class"),
        ("module:Outer.Inner", "module", "Outer.Inner"),
        ("module.Class", "module", "Class"),
    ],
)
def test_both_dotted_forms_have_parts(path: str, module: str, name: str) -> None:
    parsed = parse_experiment_path(path)
    assert (parsed.module, parsed.name) == (module, name)


@pytest.mark.parametrize(
    "path", ["", "Class", ":", "a:", ":b", "a b.c", "a..b", "a.b:", "1a.b", "a.py:", "../x.py:A"]
)
def test_anything_else_is_an_error_that_names_the_forms(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ExperimentPathError, match=r"write pkg\.module\.Class|does not exist|names"):
        parse_experiment_path(path)


@given(st.text(max_size=40))
def test_no_string_gives_any_other_exception(path: str) -> None:
    try:
        parsed = parse_experiment_path(path)
    except ExperimentPathError:
        return
    assert parsed.module
    assert parsed.name


def test_the_package_of_a_file_is_found_from_its_folders(tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent):
        (folder / "__init__.py").touch()
    (inner / "train.py").touch()
    parsed = parse_experiment_path(f"{inner}/train.py:Train")
    assert (parsed.module, parsed.root) == ("outer.inner.train", tmp_path)
