"""The server's control over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import disturbed_app as disturbed
import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import request


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with disturbed.app.run():
        yield


def test_the_http_control_shows_what_the_server_knows(modal_emulator: Emulator) -> None:
    disturbed.nap.remote(0)
    functions = request(modal_emulator, "functions")
    gpus = {each["name"]: each["gpus"] for each in functions if not each["base_function_id"]}
    assert gpus["on_gpu"] == ["H200:2", "L40S", "T4"]
    assert request(modal_emulator, "calls")[-1]["function_name"] == "nap"
    assert {"state", "gpu"} <= set(request(modal_emulator, "containers")[-1])
    assert request(modal_emulator, f"logs?app_id={disturbed.app.app_id}") is not None
    assert any(each["app_id"] == disturbed.app.app_id for each in request(modal_emulator, "apps"))
    assert request(modal_emulator, "images")[0]["base"].startswith("python:")


def test_the_http_control_makes_things_go_wrong(modal_emulator: Emulator) -> None:
    request(modal_emulator, "kill_input", {"nth": 1, "after_s": 0.2})
    assert disturbed.nap.remote(0.5)  # the input runs again in another container
    assert modal_emulator.calls("nap")[-1].inputs[0].starts == 2
    request(modal_emulator, "limit_gpu", {"name": "A10", "count": 0})
    request(modal_emulator, "clear_faults", {})
    assert disturbed.nap.with_options(gpu="A10").remote(0)


def test_the_http_control_refuses_strangers_and_nonsense(modal_emulator: Emulator) -> None:
    with pytest.raises(urllib.error.HTTPError, match="401"):
        request(modal_emulator, "functions", token="guessed")
    with pytest.raises(urllib.error.HTTPError, match="400") as caught:
        request(modal_emulator, "limit_gpu", {"name": "H1000", "count": 0})
    assert "not a GPU type" in caught.value.read().decode()
    with pytest.raises(urllib.error.HTTPError, match="400"):
        request(modal_emulator, "limit_gpu", {"nonsense": 1})
