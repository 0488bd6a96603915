"""GPU types and counts as Modal spells them."""

from __future__ import annotations

import emulated_settings as settings
import modal
import pytest
from modal.exception import InvalidError

from modal_emulator import Emulator


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ("H1000", 'H1000" is not a GPU type that Modal offers; did you mean H100'),
        ("a10g", "did you mean A10"),
        ("A10:8", "A10 is offered with 1 to 4 per container"),
        ("H100:0", "1 to 8"),
        (["A100", "T5"], '"T5" is not a GPU type'),
    ],
)
def test_gpus_that_modal_does_not_offer_are_refused(gpu: str | list[str], message: str) -> None:
    app = modal.App("refused")
    app.function(gpu=gpu)(settings.one)
    with pytest.raises(InvalidError, match=message), app.run():
        pytest.fail("the app ran")


@pytest.mark.parametrize("gpu", ["H100!", "B200+:4", "RTX-PRO-6000", "a100-80gb:8"])
def test_every_spelling_that_modal_offers_is_accepted(gpu: str, modal_emulator: Emulator) -> None:
    app = modal.App("accepted")
    app.function(gpu=gpu)(settings.one)
    with app.run():
        assert modal_emulator.functions("one")[-1].gpus == (gpu.upper(),)
