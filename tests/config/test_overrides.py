"""What `key=value` means, and the errors of overrides that can't be applied."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_experiments.config.loading import load_config
from ml_experiments.errors import ConfigError


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=3e-4", {"optimizer": {"lr": 3e-4}}),
        ("lr=1e3", {"lr": 1000.0}),
        ("lr=.5", {"lr": 0.5}),
        ("lr=-.inf", {"lr": -math.inf}),
        ("steps=1_000", {"steps": 1000}),
        ("steps=-5", {"steps": -5}),
        ("mask=0x1F", {"mask": 31}),
        ("sizes=[1,2]", {"sizes": [1, 2]}),
        ("sizes=[1, [a, 'b c'], {x: null}]", {"sizes": [1, ["a", "b c"], {"x": None}]}),
        ("layer={kind: conv, size: 3}", {"layer": {"kind": "conv", "size": 3}}),
        ("names={1: a, on: b}", {"names": {"1": "a", "on": "b"}}),
        ("x=null", {"x": None}),
        ("x=true", {"x": True}),
        ("x=False", {"x": False}),
        ("x=off", {"x": False}),
        ("x=", {"x": ""}),
        ("x='7'", {"x": "7"}),
        ('x="null"', {"x": "null"}),
        ('prompt="draw #3"', {"prompt": "draw #3"}),
        ('prompt="tab\\there"', {"prompt": "tab\there"}),
        ("prompt=draw #3", {"prompt": "draw #3"}),
        ("prompt=a cat: fluffy", {"prompt": "a cat: fluffy"}),
        ("prompt=a=b", {"prompt": "a=b"}),
        ("prompt= two  spaces ", {"prompt": " two  spaces "}),
        ("prompt='tis the season", {"prompt": "'tis the season"}),
        ('prompt="yes" is what it said', {"prompt": '"yes" is what it said'}),
        ("prompt=*star* & |pipe > %", {"prompt": "*star* & |pipe > %"}),
        ("prompt=- dash", {"prompt": "- dash"}),
        ("prompt=???", {"prompt": "???"}),
        ("prompt=costs $5", {"prompt": "costs $5"}),
        ("prompt=\\${x}", {"prompt": "${x}"}),
        ("ratio=16:9", {"ratio": "16:9"}),
        ("day=2026-01-02", {"day": "2026-01-02"}),
        ("code=010", {"code": "010"}),
        ("version=1.2.3", {"version": "1.2.3"}),
        ("revision=12e4567", {"revision": "12e4567"}),
        ("path=C:\\new", {"path": "C:\\new"}),
    ],
)
def test_an_override_means_what_it_says(override: str, expected: Any) -> None:
    found = load_config(None, [override])
    assert found == expected
    assert json.dumps(found) == json.dumps(expected)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr"], "'lr' is not an override; write it as key=value"),
        (["lr", "3"], "'lr 3' is not an override; write lr=3"),
        (["lr", "=", "3"], "'lr = 3' is not an override; write lr=3"),
        (["lr=", "3"], "'lr= 3' is not an override; write lr=3"),
        (["lr:3"], "'lr:3' is not an override; write lr=3"),
        (["api_key", "hunter2"], "'api_key <redacted>' is not"),
        (["c.yaml"], "write --config c.yaml"),
        (["=3"], "not the name of a field"),
        (["a..b=3"], "not the name of a field"),
        (["--lr=3"], "not the name of a field"),
        (["a=[1"], "a=[1, line 1"),
        (["a={b: }}"], "a={b: }}, line 1"),
        (["a={x: 1, x: 2}"], "'x' is there twice"),
        (["a=" + "[" * 1000 + "]" * 1000], "nested deeper"),
        (["a=" + "1" * 5000], "4300 digits"),
        (["a=3", "a.b=4"], "a.b: a is 3, which has no fields"),
        (["a=[1]", "a.1=4"], "items: 0 to 0"),
        (["a=[]", "a.0=4"], "items: none, it is empty"),
        (["a=[1]", "a.x=4"], "'x' is no item of the list a"),
        (["a=[1]", "a.x.y=4"], "'x' is no item of the list a"),
        (["a=[&x [*x]]"], "nested deeper"),
        (["a=[!!binary aGk=]"], "a bytes is not JSON"),
        (["a=[!!timestamp x]"], "'x' is not of the type !!timestamp"),
        (["a=[!!int '']"], "'' is not of the type !!int"),
        (["a" + ".a" * 2000 + "=1"], "not the name of a field"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert len(caught.value.problems) == 1
    assert message in caught.value.problems[0]


@pytest.mark.parametrize("override", ["layer={kind:3}", "layers=[{kind:3}]", "a={b: {kind:3}}"])
def test_a_dict_without_a_space_after_the_colon_says_what_to_write(override: str) -> None:
    with pytest.raises(ConfigError, match="space after the colon: kind: 3"):
        load_config(None, [override])


def test_a_wrong_override_does_not_show_a_secret() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["api_key=[hunter2", "password=hunter2", "password.x=1"])
    assert len(caught.value.problems) == 2
    assert "hunter2" not in str(caught.value)


def test_all_wrong_overrides_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["a", "ok=1", "=b", "c=["])
    assert len(caught.value.problems) == 3


@settings(deadline=None, max_examples=300)
@given(written=st.text(st.characters(exclude_categories=["Cs"])))
def test_no_override_raises_anything_but_a_config_error(written: str) -> None:
    for override in (
        written,
        f"a={written}",
        f"a=[{written}]",
        f"a={{x: {written}}}",
        f"a='{written}'",
    ):
        with contextlib.suppress(ConfigError):
            load_config(None, [override])


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@settings(deadline=None)
@given(written=words.filter(lambda t: t.strip() and t.strip()[0] not in "[{'\"" and "${" not in t))
def test_a_string_survives(written: str) -> None:
    found = load_config(None, [f"prompt={written} x"])
    assert found == {"prompt": f"{written} x"}
