"""A base, a file and overrides become one dict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ml_experiments.config.loading import load_config
from tests.support.configs import write_file

if TYPE_CHECKING:
    pass


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
