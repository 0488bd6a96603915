"""GPU types and counts as Modal spells them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import emulated_settings as settings
import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import InvalidError

from modal_emulator import Emulator
from modal_emulator.rpc.gpus import check_name

register_pickle_by_value(sys.modules[__name__])


def gpu_of_the_container() -> str:
    return os.environ["MODAL_EMULATOR_GPU"]


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ("H1000", 'H1000" is not a GPU type that Modal offers; did you mean H100'),
        ("a11g", "did you mean A10G"),
        ("any:5", "ANY is offered with 1 to 4 per container"),
        ("A10:8", "A10 is offered with 1 to 4 per container"),
        ("H100:0", "1 to 8"),
        (["A100", "T5"], '"T5" is not a GPU type'),
    ],
)
def test_gpus_that_modal_does_not_offer_are_refused(
    gpu: str | list[str], message: str, modal_emulator: Emulator
) -> None:
    app = modal.App("refused")
    app.function(gpu=gpu)(settings.one)
    with pytest.raises(InvalidError, match=message), app.run():
        pytest.fail("the app ran")


@pytest.mark.parametrize("gpu", ["H100!", "B200+:4", "RTX-PRO-6000", "a100-80gb:8", "a10g", "any"])
def test_every_spelling_that_modal_offers_is_accepted(gpu: str, modal_emulator: Emulator) -> None:
    app = modal.App("accepted")
    app.function(gpu=gpu)(settings.one)
    with app.run():
        assert modal_emulator.functions("one")[-1].gpus == (gpu.upper(),)


def test_a10g_is_an_a10_and_any_is_the_first_that_is_free(modal_emulator: Emulator) -> None:
    app = modal.App("names", include_source=False)
    a10g = app.function(gpu="a10g", serialized=True, name="a10g")(gpu_of_the_container)
    anything = app.function(gpu="any", serialized=True, name="anything")(gpu_of_the_container)
    modal_emulator.limit_gpu("L4", 0)
    modal_emulator.limit_gpu("A10", 1)
    with app.run():
        # the only A10 is taken by the first
        assert [a10g.remote(), anything.remote()] == ["A10", "T4"]
        modal_emulator.limit_gpu("L4", None)
        assert anything.with_options(memory=300).remote() == "L4"


def test_any_is_not_a_type_that_can_be_out_of_capacity(modal_emulator: Emulator) -> None:
    with pytest.raises(ValueError, match="limit L4, A10 and T4"):
        modal_emulator.limit_gpu("any", 0)


def test_every_gpu_in_the_texts_of_the_client_is_known() -> None:
    folder = Path(modal.__file__).parent
    written = {
        name
        for file in folder.rglob("*.py")
        for quoted in re.findall(r"gpus?\b.*", file.read_text(encoding="utf-8"), re.IGNORECASE)
        for name in re.findall(
            r"""gpu=f?["'`]([A-Za-z0-9!+-]+)(?::\d)?["'`]|`([a-z0-9]+)(?::\d)?`, """, quoted
        )
    }
    names = {first or second for first, second in written} | {"any"}
    assert {"A100", "H100", "a10g", "any"} <= names
    for name in sorted(names):
        check_name(name)
