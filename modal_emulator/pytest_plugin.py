"""Pytest fixtures for tests of Modal apps without Modal.

pytest loads this plugin by its entry point, so that a test needs no set-up:

    def test_my_app(modal_emulator):
        with my_app.app.run():
            assert my_app.square.remote(3) == 9
        assert modal_emulator.functions("square")[0].gpus == ("A10",)

Each test has a server of its own, so that none finds what another has written.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from modal_emulator.emulator import Emulator


def _forget_ids(client: Any) -> None:
    """Let the named objects that a client has looked up be looked up again when they are used.

    A volume or a dict at the top of a user's module remembers its id, which no other server knows.
    """
    from modal._object import _Object

    for each in gc.get_objects():
        # not isinstance(): it would load the lazy modules of other packages
        if issubclass(type(each), _Object) and each._client is client and each._hydrate_lazily:
            each._unhydrate()


@contextmanager
def connected(emulator: Emulator) -> Iterator[Emulator]:
    """Connect the modal clients of this process and of its children to an emulator."""
    import modal
    from modal._environments import ENVIRONMENT_CACHE
    from modal.client import _Client

    outer = _Client._client_from_env
    with pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        patch.setattr(_Client, "_client_from_env", None)
        if outer is not None:
            _forget_ids(outer)
        ENVIRONMENT_CACHE.clear()
        try:
            yield emulator
        finally:
            if _Client._client_from_env is not None:
                _forget_ids(_Client._client_from_env)
                client: Any = modal.Client.from_env()
                client.__exit__(None, None, None)
            ENVIRONMENT_CACHE.clear()


@pytest.fixture
def modal_emulator() -> Iterator[Emulator]:
    """A server for this test alone, without the volumes, secrets and apps of other tests.

    This process and its children are connected to it.
    """
    # not at the top, because every pytest run in this environment imports this module
    from modal_emulator.emulator import Emulator

    with Emulator() as emulator, connected(emulator):
        yield emulator


@pytest.fixture(scope="session")
def modal_emulator_server() -> Iterator[Emulator]:
    """One server for all tests that use it, such as for an app that a module's tests share."""
    from modal_emulator.emulator import Emulator

    with Emulator() as emulator, connected(emulator):
        yield emulator
