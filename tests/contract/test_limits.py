"""What the contract may cost on Modal."""

from __future__ import annotations

from types import ModuleType

from modal_emulator import Emulator
from tests.contract.limits import CONTAINER_CORES, CONTAINER_GIB, MAX_CONTAINERS, max_cost_usd

# parameters and with_options() have containers of their own: four of Slow, two others
VARIANTS = 6


def test_a_run_of_the_contract_costs_less_than_a_dollar() -> None:
    assert max_cost_usd(gpu=False) < max_cost_usd(gpu=True) < 1


def test_no_function_can_use_more_than_the_cost_is_computed_with(
    running: ModuleType, modal_emulator_server: Emulator
) -> None:
    functions = [
        each for each in modal_emulator_server.functions() if each.app_id == running.app.app_id
    ]
    assert 2 * (len(functions) + VARIANTS) <= MAX_CONTAINERS
    assert {each.max_containers for each in functions} <= {1, 2}
    assert {each.cpu for each in functions} == {(0.125, CONTAINER_CORES)}
    assert {each.memory_mb for each in functions} == {(128, int(CONTAINER_GIB * 1024))}
    assert {each.gpus for each in functions} == {()}
