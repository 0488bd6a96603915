"""A base, a file and overrides become one dict."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments.config.loading import load_config
from ml_experiments.errors import ConfigError
from tests.support.configs import write_file


def test_later_wins_over_earlier_and_overrides_over_the_file(tmp_path: Path) -> None:
    file = write_file(tmp_path, "c.yaml", "a: {x: 1, y: 2}\nsizes: [1, 2, 3]\nname: file\n")
    base = {"a": {"z": 0, "x": 0}, "sizes": [9], "only_base": True}
    config = load_config(file, ["a.x=5", "a.x=6", "sizes.0=7", "new.deep.er=1"], base)
    assert config == {
        "a": {"x": 6, "y": 2, "z": 0},
        "sizes": [7, 2, 3],
        "name": "file",
        "only_base": True,
        "new": {"deep": {"er": 1}},
    }
    assert base == {"a": {"z": 0, "x": 0}, "sizes": [9], "only_base": True}
    assert load_config(file, ["a={q: 1}", "a.r=2"])["a"] == {"q": 1, "r": 2}
    assert load_config(file, ["a=null", "a.x=1"])["a"] == {"x": 1}


def test_a_value_that_is_to_be_given_is_asked_for(tmp_path: Path) -> None:
    file = write_file(
        tmp_path, "c.yaml", "lr: ???\nopt:\n  betas: [0.9]\n  eps: ???\nquoted: '???'\nmodel: ???\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["model=bert"])
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["lr", "opt.eps"]
    assert "write lr=..." in caught.value.problems[0]
    given = load_config(file, ["model=bert", "lr=0.1", "opt.eps=1"])
    assert given == {"lr": 0.1, "opt": {"betas": [0.9], "eps": 1}, "quoted": "???", "model": "bert"}
    assert load_config(file, ["lr='???'", "model=b", "opt=null"])["lr"] == "???"
