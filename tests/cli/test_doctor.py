"""`ml-experiments doctor`."""

from __future__ import annotations

import json

import pytest

from tests.support.command import call

pytestmark = pytest.mark.slow


def test_doctor_says_what_works_and_what_to_do() -> None:
    checks = {check["name"]: check for check in json.loads(call("doctor", "--json").stdout)}
    assert checks["python"]["ok"] is True
    assert {"gpu", "torch", "modal token", "model hub", "run folders"} <= checks.keys()
    assert all(check["advice"] for check in checks.values() if not check["ok"])
    assert "python" in call("doctor").stdout
