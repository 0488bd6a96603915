"""`${...}` in a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments.config.loading import load_config
from ml_experiments.errors import ConfigError
from tests.support.configs import write_file


def test_interpolations_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_TOKEN", "abc")
    file = write_file(
        tmp_path,
        "c.yml",
        "lr: 0.1\nopt: {lr: '${lr}', same: '${.lr}'}\ncopy: ${opt}\nname: lr-${lr}\n"
        "token: ${oc.env:THE_TOKEN}\nother: ${oc.env:NOT_SET,fallback}\nlist: ['${lr}', '???']\n",
    )
    assert load_config(file, ["lr=0.5", "extra=${lr}"]) == {
        "lr": 0.5,
        "opt": {"lr": 0.5, "same": 0.5},
        "copy": {"lr": 0.5, "same": 0.5},
        "name": "lr-0.5",
        "token": "abc",
        "other": "fallback",
        "list": [0.5, "???"],
        "extra": 0.5,
    }


def test_every_interpolation_that_leads_nowhere_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    overrides = ["a.b=${oc.env:NOT_SET}", "c=[1,'${nope.x}']", "d=${no.such:1}", "e=${f}", "f=${e}"]
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    fields = [problem.partition(":")[0] for problem in caught.value.problems]
    assert fields == ["a.b", "c.1", "d", "e", "f"]
    assert "environment variable NOT_SET is not set" in caught.value.problems[0]
    for written in ("x=${", "x=${y", "x=${oc.env:}", "x={y: '${x}'}"):
        with pytest.raises(ConfigError, match="x"):
            load_config(None, [written])
