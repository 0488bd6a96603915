"""Pytest fixtures for tests of Modal apps without Modal.

pytest loads this plugin by its entry point, so a test needs no set-up:

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


def _forget_clients() -> None:
    """Make the modal client of this process read its environment variables again."""
    from modal._environments import ENVIRONMENT_CACHE
    from modal.client import _Client

    _Client._client_from_env = None
    ENVIRONMENT_CACHE.clear()


@contextmanager
def connected(emulator: Emulator) -> Iterator[Emulator]:
    """Let the modal client of this process and of its children talk to an emulator."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        _forget_clients()
        try:
            yield emulator
        finally:
            _forget_clients()


@pytest.fixture(scope="session")
def modal_emulator_server() -> Iterator[Emulator]:
    """One server for the test session; this process and its children talk to it."""
    from modal_emulator.emulator import Emulator  # every pytest run on this machine loads this file

    with Emulator() as emulator, connected(emulator):
        yield emulator


@pytest.fixture
def modal_emulator(modal_emulator_server: Emulator) -> Iterator[Emulator]:
    """The session's server, without faults at the start and the end of the test."""
    modal_emulator_server.clear_faults()
    yield modal_emulator_server
    modal_emulator_server.clear_faults()
