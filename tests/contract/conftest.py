"""The server that the contract is checked on: the local one, or Modal itself."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import modal
import pytest

APPS = Path(__file__).parent / "apps"
# top-level modules, as in a user's project: modal then ships the file and not all tests
sys.path.insert(0, str(APPS))

IS_REAL = os.environ.get("CONTRACT_SERVICE") == "modal"
PREFIX = os.environ.setdefault("CONTRACT_PREFIX", "contract")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that each behaviour has."""
    config.addinivalue_line(
        "markers", "documented(page, says): the page of Modal's documentation, and what it says"
    )


@pytest.fixture(scope="session")
def service(request: pytest.FixtureRequest) -> None:
    """Connect to the local server, unless the contract is checked on Modal."""
    if not IS_REAL:
        request.getfixturevalue("modal_emulator_server")


@pytest.fixture(scope="module")
def running(service: None) -> Iterator[ModuleType]:
    """The module with the app's functions, whose app runs for the tests of one module."""
    import contract_app

    with contract_app.app.run():
        yield contract_app


@pytest.fixture
def notes(service: None) -> modal.Dict:
    """A dict to which containers write what happened in them."""
    found = modal.Dict.from_name(f"{PREFIX}-notes", create_if_missing=True)
    return found.hydrate()  # it is an argument of functions


@pytest.fixture
def key() -> str:
    """A key that no other test uses."""
    return uuid.uuid4().hex


@pytest.fixture
def new_app(service: None) -> Callable[..., Any]:
    """Return a function that starts an app with one function, which does not run."""

    def start(**options: Any) -> str:
        app = modal.App(f"{PREFIX}-checked")
        app.function(serialized=True, name="checked", **options)(lambda: None)
        with app.run():
            assert app.app_id is not None
            return app.app_id

    return start


@pytest.fixture(autouse=True)
def _document(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> None:
    marker = request.node.get_closest_marker("documented")
    if marker is not None:
        page, says = marker.args
        record_property("page", f"https://modal.com/docs/{page}")
        record_property("says", says)
