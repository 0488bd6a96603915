"""What the tests of ready experiments share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ml_experiments import LocalBackend
from tests.support.torch_values import HAS_TORCH


@pytest.fixture(scope="session")
def warm_backend() -> Iterator[LocalBackend]:
    """A worker that has imported torch and diffusers once for many tests."""
    if not HAS_TORCH:
        pytest.skip("torch is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # threads that spin while they wait are a disaster when several tests share the cores
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        with LocalBackend() as opened:
            yield opened
