"""Pytest fixtures for tests of Modal apps without Modal.

pytest loads this plugin by its entry point, so that a test needs no set-up:

    def test_my_app(modal_emulator):
        with my_app.app.run():
            assert my_app.square.remote(3) == 9
        assert modal_emulator.functions("square")[0].gpus == ("A10",)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from modal_emulator.emulator import Emulator


def _reset_client() -> None:
    """Make the modal client of this process read its environment variables again."""
    from modal._environments import ENVIRONMENT_CACHE
    from modal.client import _Client

    _Client._client_from_env = None
    ENVIRONMENT_CACHE.clear()


@contextmanager
def connected(emulator: Emulator) -> Iterator[Emulator]:
    """Connect the modal clients of this process and of its children to an emulator."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        _reset_client()
        try:
            yield emulator
        finally:
            _reset_client()


@pytest.fixture(scope="session")
def modal_emulator_server() -> Iterator[Emulator]:
    """One server for the test session, which this process and its children are connected to."""
    # not at the top, because every pytest run in this environment imports this module
    from modal_emulator.emulator import Emulator

    with Emulator() as emulator, connected(emulator):
        yield emulator


@pytest.fixture
def modal_emulator(modal_emulator_server: Emulator) -> Iterator[Emulator]:
    """The server of the session, without faults at the start and end of the test."""
    modal_emulator_server.clear_faults()
    yield modal_emulator_server
    modal_emulator_server.clear_faults()
