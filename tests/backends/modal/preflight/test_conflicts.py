"""Requirements that the image can't meet, told before it is built."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ml_experiments.backends.modal.preflight.conflicts import find_conflicts

LOCK = {"torch": "2.13.0", "cwevals": "0.0.1b1", "huggingface-hub": "2.4.0"}
WHEEL = "https://example.com/torch-{}-cp311-cp311-linux_x86_64.whl"


def conflicts(*texts: str) -> tuple[str, ...]:
    return find_conflicts([Requirement(text) for text in texts], LOCK)


@pytest.mark.parametrize(
    "text",
    [
        *("torch", "torch==2.13.0", "torch==2.13", "torch>=2,<3", "torch~=2.13", "torch!=2.12.0"),
        *("Torch[extra]==2.13.*", "torch===2.13.0", "cwevals", "cwevals==0.0.1b1"),
        "Hugging_Face.Hub>=99",  # another package
        "torch==1.0; sys_platform == 'win32'",
        "torch==1.0; python_version < '3.11'",
        f"torch @ {WHEEL.format('2.13.0')}",
        f"torch @ {WHEEL.format('2.13.0%2Bcu126')}",
        "torch @ git+https://example.com/torch.git@main",
        "torch @ https://example.com/archive/main.zip",
        "timm==1.0",
    ],
)
def test_what_includes_the_locked_version_is_fine(text: str) -> None:
    assert conflicts(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        *("torch==1.0", "torch<2.13", "torch>2.13.0", "torch!=2.13.0", "torch~=2.14"),
        *("torch[extra]==1.0", "Torch==2.13.1", "torch===1.0", "huggingface_hub<2"),
        "torch==1.0; sys_platform == 'linux'",
        f"torch @ {WHEEL.format('2.12.0')}",
        "torch @ https://example.com/torch-2.12.0.tar.gz",
    ],
)
def test_what_excludes_the_locked_version_is_refused(text: str) -> None:
    [problem] = conflicts(text)
    requirement = Requirement(text)
    version = LOCK[requirement.name.lower().replace("_", "-")]
    assert problem.startswith(f"{requirement}: the image has {requirement.name} {version}")
    assert problem.endswith(f"ask for a version of {requirement.name} that includes {version}")


@pytest.mark.parametrize(
    "texts",
    [
        ("timm==1.0", "timm==0.9"),
        ("timm==1.0", "Timm>=2"),
        ("timm>=2", "timm<1"),
        ("timm~=1.4", "timm>=2"),
        ("timm>1,<1",),
        ("timm==1.*", "timm!=1.*"),
        ("timm==1.0rc1", "timm==1.0rc2"),
        ("timm @ https://example.com/a.zip", "timm @ https://example.com/b.zip"),
        ("timm @ https://example.com/timm-1.0.tar.gz", "timm>=2"),
    ],
)
def test_what_contradicts_itself_is_refused(texts: tuple[str, ...]) -> None:
    [problem] = conflicts(*texts)
    assert all(str(Requirement(text)) in problem for text in texts)
    assert "keep one of them" in problem


@pytest.mark.parametrize(
    "texts",
    [
        ("timm==1.0", "timm>=1", "timm==1.0.0", "timm"),
        ("timm==1.0+cu1", "timm==1.0"),
        ("timm>1.0", "timm<1.0.1"),
        ("timm>1.0rc1", "timm<1.0rc3"),
        ("timm===odd", "timm>=2"),
        ("timm==1.0; sys_platform == 'win32'", "timm==0.9; sys_platform == 'linux'"),
        ("timm @ https://example.com/a.zip", "timm>=1"),
        ("timm==1.0", "einops==0.9"),
    ],
)
def test_what_may_be_possible_is_not_refused(texts: tuple[str, ...]) -> None:
    assert conflicts(*texts) == ()


def test_all_problems_are_named() -> None:
    problems = conflicts("torch==1.0", "timm==1", "timm==2", "huggingface-hub==1")
    assert len(problems) == 3


VERSIONS = [f"{major}.{minor}" for major in range(4) for minor in range(4)]
SPECIFIERS = st.one_of(
    st.builds(
        "{}{}".format,
        st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "~="]),
        st.sampled_from(VERSIONS),
    ),
    st.builds(
        "{}{}.*".format, st.sampled_from(["==", "!="]), st.sampled_from([*VERSIONS, "1", "2"])
    ),
)


@given(st.lists(SPECIFIERS, min_size=1, max_size=5))
def test_nothing_that_some_version_meets_is_refused(parts: list[str]) -> None:
    possible = SpecifierSet(",".join(parts))
    grid = [*VERSIONS, *(f"{v}.{patch}" for v in VERSIONS for patch in (1, 9)), "4.0", "0.0.0.1"]
    if any(possible.contains(version) for version in grid):
        assert conflicts(*(f"timm{part}" for part in parts)) == ()
