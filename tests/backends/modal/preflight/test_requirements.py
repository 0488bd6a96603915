"""Requirements as users write them, in arguments and in files."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from ml_experiments.backends.modal.preflight.imports import CONTAINER_PLATFORM, CONTAINER_PYTHON
from ml_experiments.backends.modal.preflight.requirements import (
    CONTAINER_MARKERS,
    is_for_container,
    parse_requirement,
    read_requirements,
)
from ml_experiments.errors import PreflightError


@pytest.mark.parametrize("text", ["-r other.txt", "two words", "--no-deps", "==1"])
def test_what_is_not_a_requirement_is_named(text: str) -> None:
    with pytest.raises(PreflightError, match="is not a requirement such as"):
        parse_requirement(text)


@pytest.mark.parametrize("url", ["./timm", ".", "file:///home/ada/timm.whl"])
def test_a_file_of_this_machine_is_refused(url: str) -> None:
    with pytest.raises(PreflightError, match="names a file or folder of this machine"):
        parse_requirement(f"timm @ {url}")


def test_a_requirements_file_is_read_without_comments(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# for the eval\neinops>=0.8  # layers\n\ntimm @ https://example.com/t.whl#sha256=0\n"
    )
    expected = ("einops>=0.8", "timm @ https://example.com/t.whl#sha256=0")
    assert read_requirements(file) == expected


@pytest.mark.parametrize("name", ["nothere.txt", "."])
def test_an_unreadable_requirements_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(PreflightError, match=r"requirements file .* is not readable"):
        read_requirements(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("-r other.txt", "copy its lines into this one"),
        ("--requirement=other.txt", "copy its lines into this one"),
        ("-c constraints.txt", "copy its lines into this one"),
        ("--index-url https://example.com/simple", "options are not passed on"),
        ("-i https://example.com/simple", "options are not passed on"),
        ("--extra-index-url https://example.com", "write.* as 'name @ https://…'|is written as"),
        ("-e .", "sent along without being named"),
        ("./my_package", "sent along without being named"),
        ("einops==0.8 --hash=sha256:00", "one requirement such as timm>=1.0 a line"),
        ("einops==0.8 \\", "one requirement such as timm>=1.0 a line"),
        ("einops=0.8", "'einops=0.8' is not a requirement such as"),
    ],
)
def test_a_line_that_is_no_requirement_is_named_with_its_place_and_what_to_do(
    tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"timm\n{line}\n")
    with pytest.raises(PreflightError, match=says) as e:
        read_requirements(file)
    assert str(e.value).startswith(f"{file}:2: {line!r}")


def test_all_wrong_lines_of_a_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("-r a.txt\ntimm\n--pre\n")
    with pytest.raises(PreflightError) as e:
        read_requirements(file)
    assert [line.split(": ")[0] for line in str(e.value).splitlines()] == [f"{file}:1", f"{file}:3"]


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("sys_platform == 'linux'", True),
        ("sys_platform == 'darwin'", False),
        ("platform_system != 'Windows'", True),
        ("platform_machine == 'x86_64'", True),
        ("platform_machine == 'arm64'", False),
        ("python_version >= '3.11' and python_version < '3.12'", True),
        ("python_version < '3.11'", False),
        ("python_full_version >= '3.11.4'", True),
        ("implementation_name == 'pypy'", False),
        ("extra == 'dev'", False),
    ],
)
def test_markers_are_those_of_a_container(marker: str, expected: bool) -> None:
    assert is_for_container(Requirement(f"einops; {marker}")) is expected
    assert is_for_container(Requirement("einops"))


def test_no_marker_is_taken_from_this_machine() -> None:
    assert {*default_environment(), "extra"} == set(CONTAINER_MARKERS)
    assert CONTAINER_MARKERS["python_version"] == ".".join(map(str, CONTAINER_PYTHON))
    assert CONTAINER_MARKERS["sys_platform"] == CONTAINER_PLATFORM
