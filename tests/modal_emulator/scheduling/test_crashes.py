"""Containers that die: their inputs run again, until that is given up.

As in https://modal.com/docs/guide/retries, with the emulator's own numbers.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import modal
import pytest
from modal._vendor.cloudpickle import register_pickle_by_value
from modal.exception import InternalFailure

from modal_emulator import Emulator
from modal_emulator.scheduling.crashes import Crashes

register_pickle_by_value(sys.modules[__name__])


def die_at_first(key: str) -> str:
    """End the container as the key says, unless another attempt did so already."""
    seen = modal.Dict.from_name("deaths", create_if_missing=True)
    if not seen.put(key, True, skip_if_exists=True):
        return f"survived {key}"
    if key.startswith("exit"):
        os._exit(0)
    if key.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    blocks = []
    while True:
        blocks.append(bytearray(8 << 20))


def die(_: int) -> None:
    os._exit(41)


def starts_of(emulator: Emulator, name: str) -> list[tuple[int, int]]:
    return [(each.attempts, each.starts) for each in emulator.calls(name)[-1].inputs]


@pytest.mark.parametrize(
    "key", ["exit with 0", "killed", "out of memory", "out of memory without a cgroup"]
)
def test_an_input_whose_container_dies_runs_again_and_not_as_a_retry(
    key: str, modal_emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "without" in key:
        monkeypatch.setattr("modal_emulator.containers.memory_cgroup._parents", lambda: ())
    app = modal.App("dies")
    function = app.function(serialized=True, name="once", memory=(128, 400))(die_at_first)
    with app.run():
        assert function.remote(key) == f"survived {key}"
        assert starts_of(modal_emulator, "once") == [(1, 2)]
        logs = "".join(each.text for each in modal_emulator.logs(str(app.app_id)))
    if key.startswith("out of memory"):
        assert "it used more than its memory limit of 400 MiB" in logs
        reasons = [each.end_reason for each in modal_emulator.containers()]
        assert "out_of_memory" in reasons


def test_an_ephemeral_app_gives_up_and_fails_everything_that_waits(
    modal_emulator: Emulator,
) -> None:
    app = modal.App("always-dies")
    options: dict[str, Any] = {"name": "always", "max_containers": 1, "retries": 5}
    function = app.function(serialized=True, **options)(die)
    message = r"exited with code 41 while it ran an input, as 2 others did shortly before"
    with app.run():
        failures = list(function.map(range(3), return_exceptions=True))
    assert [type(each) for each in failures] == [InternalFailure] * 3
    assert all(message in str(each) for each in failures)
    assert sum(starts for _, starts in starts_of(modal_emulator, "always")) == 3


FAILS_AT_START = """
import modal, os
app = modal.App("fails-at-start")
if os.environ.get("MODAL_IS_REMOTE"):
    counted = modal.Dict.from_name("starts", create_if_missing=True)
    number = counted.get("starts", 0) + 1
    counted["starts"] = number
    if number < {works_at}:
        raise RuntimeError(f"start {{number}} fails")
@app.function()
def value():
    return number
"""


@pytest.fixture
def fails_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports an app whose start works from the n-th time on."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(works_at: int) -> Any:
        name = f"fails_until_{works_at}"
        (tmp_path / f"{name}.py").write_text(FAILS_AT_START.format(works_at=works_at))
        modal.Dict.from_name("starts", create_if_missing=True).clear()
        return __import__(name)

    return make


def test_a_container_that_fails_at_its_start_is_started_again(
    fails_at_start: Any, modal_emulator: Emulator
) -> None:
    module = fails_at_start(3)
    with module.app.run():
        assert module.value.remote() == 3


def test_a_start_that_always_fails_is_given_up_with_its_own_exception(
    fails_at_start: Any, modal_emulator: Emulator
) -> None:
    module = fails_at_start(100)
    with module.app.run(), pytest.raises(RuntimeError, match="start 3 fails"):
        module.value.remote()


def test_a_deployed_app_is_started_again_for_ever_with_a_growing_delay(
    fails_at_start: Any, modal_emulator: Emulator, run_modal: Callable[..., Any]
) -> None:
    module = fails_at_start(5)
    module.app.deploy()
    assert modal.Function.from_name("fails-at-start", "value").remote() == 5
    app_id = modal_emulator.calls("value")[-1].app_id
    started = sorted(
        each.created_at for each in modal_emulator.containers() if each.app_id == app_id
    )
    run_modal("app", "stop", app_id, "--yes")
    gaps = [later - earlier for earlier, later in pairwise(started)]
    # none before the first restart, then 0.5 s, 1 s, 2 s after the crash before
    assert [gap > delay for gap, delay in zip(gaps, (0, 0.5, 1, 2), strict=True)] == [True] * 4


def test_outputs_between_crashes_keep_the_rate_below_the_limit() -> None:
    crashes = Crashes()
    for _ in range(20):
        crashes.add_crash("de-1")
        for _ in range(4):
            crashes.add_output()
        assert not crashes.are_too_many()
        assert crashes.wait_s("de-1") == 0
    for _ in range(3):
        crashes.add_crash("de-1")
    assert crashes.are_too_many()
    assert crashes.wait_s("de-1") > 0
    assert crashes.wait_s("of the next deployment") == 0
