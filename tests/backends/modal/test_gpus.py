"""GPU types: what is accepted, what Modal is sent, what a mistake says."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.backends.modal.gpus import (
    CATALOGUE,
    GPU_CONFIGS,
    GpuChoice,
    next_larger,
    parse_gpu,
)
from ml_experiments.errors import GpuTypeError


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("t4", "T4"),
        ("l4", "L4"),
        ("a10g", "A10"),
        ("a10", "A10"),
        ("A10G", "A10"),
        ("l40s", "L40S"),
        ("a100", "A100-40GB"),
        ("A100:2", "A100-40GB:2"),
        ("a100-80gb", "A100-80GB"),
        ("rtx-pro-6000", "RTX-PRO-6000"),
        ("h100", "H100"),
        ("h100!", "H100!"),
        ("H100!:8", "H100!:8"),
        ("h200:8", "H200:8"),
        ("b200", "B200"),
        ("h100:1", "H100"),
        ("h100, a100-80gb:2 ,l40s", ["H100", "A100-80GB:2", "L40S"]),
    ],
)
def test_modal_is_sent(text: str, sent: str | list[str]) -> None:
    assert parse_gpu(text).modal == sent


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a10gg", "did you mean 'a10g'"),
        ("H10:8", "did you mean 'h100'"),
        ("a100-80", "did you mean 'a100-80gb'"),
        ("a100x8", "did you mean 'a100:8'"),
        ("8xH100", "did you mean 'h100:8'"),
        ("a100:80gb", "did you mean 'a100-80gb'"),
        ("v100", "'v100' is not a GPU type. Known"),
        ("", "empty GPU type"),
        ("h100,", "empty GPU type"),
        ("h100:0", "1 to 8 h100"),
        ("h100:9", "1 to 8 h100"),
        ("a10g:5", "1 to 4 a10g"),
        ("h100:two", "'h100:two' is not a GPU type"),
        ("h100:8!", "'h100:8!' is not a GPU type"),
        ("a100!", "only as h100!"),
        ("h100,H100", "names h100 twice"),
        ("l40s:-1", "'l40s:-1' is not a GPU type"),
    ],
)
def test_a_mistake_says_what_was_wrong(text: str, says: str) -> None:
    with pytest.raises(GpuTypeError) as e:
        parse_gpu(text)
    assert says in str(e.value)


def test_an_unknown_name_lists_every_known_one() -> None:
    with pytest.raises(GpuTypeError) as e:
        parse_gpu("v100")
    assert all(gpu.key in str(e.value) for gpu in CATALOGUE)


def test_a_value_that_is_no_text_is_refused() -> None:
    with pytest.raises(GpuTypeError, match="not 100"):
        parse_gpu(100)  # type: ignore[arg-type]


@given(
    choices=st.lists(
        st.sampled_from(CATALOGUE).flatmap(
            lambda gpu: st.builds(
                GpuChoice,
                st.just(gpu),
                st.integers(1, gpu.max_count),
                st.booleans() if gpu.can_be_exact else st.just(False),
            )
        ),
        min_size=1,
        unique=True,
    )
)
def test_a_request_reads_back_from_its_own_text(choices: list[GpuChoice]) -> None:
    request = parse_gpu(",".join(str(c) for c in choices))
    assert request.choices == tuple(choices)
    assert parse_gpu(str(request)) == request


@given(st.text())
def test_any_text_is_a_request_or_a_gpu_type_error(text: str) -> None:
    with contextlib.suppress(GpuTypeError):
        parse_gpu(text)


def test_the_next_larger_gpu_has_more_memory_and_the_same_count() -> None:
    [start] = parse_gpu("a10g:2").choices
    names = [str(start)]
    larger = next_larger(start)
    while larger is not None:
        assert larger.memory_gb > start.memory_gb
        names.append(str(larger))
        start, larger = larger, next_larger(larger)
    assert names[:3] == ["a10g:2", "a100:2", "l40s:2"]
    assert names[-1] == "b200:2"


def test_the_catalogue_is_in_order_of_memory_and_its_names_are_unique() -> None:
    memories = [gpu.memory_gb for gpu in CATALOGUE]
    assert memories == sorted(memories)
    assert len(GPU_CONFIGS) == sum(1 + len(gpu.aliases) for gpu in CATALOGUE)
    assert GPU_CONFIGS["a10g"] == "A10"
