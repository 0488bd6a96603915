"""How search spaces are written, and what comes of them."""

from __future__ import annotations

import collections
import itertools
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.config.loading import load_config
from ml_experiments.errors import ConfigError
from ml_experiments.runner.sweeps.search_space.axes import Choice, Interval
from ml_experiments.runner.sweeps.search_space.forms import split_values
from ml_experiments.runner.sweeps.search_space.space import Space, read_space


def grid(*overrides: str) -> list[tuple[str, ...]]:
    return list(read_space(overrides).points())


def problem_of(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_space(overrides)
    return str(caught.value)


def test_all_combinations_in_written_order_the_last_axis_fastest() -> None:
    assert grid("lr=1e-4,3e-4", "seed=range:2", "name=a") == [
        ("lr=1e-4", "seed=0", "name=a"),
        ("lr=1e-4", "seed=1", "name=a"),
        ("lr=3e-4", "seed=0", "name=a"),
        ("lr=3e-4", "seed=1", "name=a"),
    ]


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("range:5", "0 1 2 3 4"),
        ("range(5)", "0 1 2 3 4"),
        ("range:1:5", "1 2 3 4"),
        ("range(1, 10, 4)", "1 5 9"),
        ("int:1:3", "1 2 3"),
        ("int:0:9:2", "0 2 4 6 8"),
        ("uniform:0:1:0.25", "0.0 0.25 0.5 0.75 1.0"),
        ("uniform:0:1:0.3", "0.0 0.3 0.6 0.9"),
        ("choice(a, b)", "a b"),
        ("choice:a,b", "a b"),
        ("[64,64],[128]", "[64,64] [128]"),
        ("{a: 1},{a: 2}", "{a:·1} {a:·2}"),
        ('"a,b",c', '"a,b" c'),
        ("don't,won't", "don't won't"),
        ("a red seven", "a·red·seven"),
        ("f(1,2),g", "f(1,2) g"),
        ("https://a.org,http://b.org", "https://a.org http://b.org"),
        ("12:30", "12:30"),
        ("", ""),
        ("null,true", "null true"),
        ("interval(0,1)", None),
        ("tag(log,interval(1e-5,1))", None),
    ],
)
def test_forms(written: str, values: str | None) -> None:
    (axis,) = read_space([f"x={written}"]).axes
    expected = None if values is None else [v.replace("·", " ") for v in values.split(" ")]
    assert (None if axis.grid is None else list(axis.grid)) == expected


def test_hydras_intervals_are_understood() -> None:
    axes = read_space(
        [
            "a=interval(0,1)",
            "b=tag(log, interval(1e-5,1e-2))",
            "c=tag(int, interval(1,8))",
            "d=tag(log, int, interval(1,8))",
            "e=tag(log, tag(int, interval(1,8)))",
            "f=choice(x,y)",
        ]
    ).axes
    assert axes == (
        Interval("a", 0, 1),
        Interval("b", 1e-5, 1e-2, is_log=True),
        Interval("c", 1, 8, 1, is_int=True),
        Interval("d", 1, 8, is_log=True, is_int=True),
        Interval("e", 1, 8, is_log=True, is_int=True),
        Choice("f", ("x", "y")),
    )


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("x=range:0", "has no values"),
        ("x=range:5:1", "has no values"),
        ("x=range:1:2:3:4", "has 4 numbers; write range:5"),
        ("x=range:0.5", "0.5 is not a whole number; for others write uniform:0:1"),
        ("x=range:5:0:-1", "the step -1 must be above 0"),
        ("x=log:0:1", "a log scale begins above 0, not at 0"),
        ("x=log:1:0.1", "0.1 is below 1; write the smaller number first"),
        ("x=log:1:1", "has one value only; write x=1"),
        ("x=log:a:b", "'a' is not a number; write log:1e-5:1e-2"),
        ("x=log:1", "has 1 numbers"),
        ("x=uniform:0:.inf", "'.inf' is not a number"),
        ("x=uniform:-1e308:1e308", "the largest number there may be is 1e+300"),
        ("x=int:0:1e30", "the largest number there may be is 9.2e+18"),
        (f"x=range:{10**400}", "the largest number there may be is 9.2e+18"),
        ("x=uniform:0:1:1e-300", "too many values to count; write a larger step"),
        ("x=1,", "there is nothing between two commas"),
        ("x=1,1", "has the value 1 twice"),
        ("x=1e-4,0.0001", "has the value 0.0001 twice (as 1e-4)"),
        ("x=choice()", "has no values"),
        ("x=[1,2", "] is missing"),
        ("x=loguniform(1e-5,1)", "'loguniform' is not a form here; write log:1e-5:1e-2"),
        ("x=lgo:1e-5:1", "'lgo' is not a form here; write log:"),
        ("x=rnage(5)", "'rnage' is not a form here; write range:5"),
        ("x=Range(5)", "'Range' is not a form here"),
        ("x=tag(dev, interval(0,1))", "write x=log:LOW:HIGH"),
        ("x=tag(log, choice(1,2))", "write x=log:LOW:HIGH"),
        ("x=file:no.txt", "no.txt can't be read"),
        ("+x=1,2", "+x is Hydra's; write x=… for a field"),
        ("hydra.sweeper.n_trials=20", "here it is --trials N"),
        ("hydra/launcher=joblib", "here it is --parallel N"),
        ("x", "'x' is not an axis; write it as name=value,value"),
        ("a..b=1", "is not the name of a field"),
    ],
)
def test_what_is_wrong_is_answered_with_the_right_form(written: str, says: str) -> None:
    assert says in problem_of(written)


def test_all_problems_are_named_at_once() -> None:
    assert len(problem_of("x=range:0", "y=1,1", "z=1").splitlines()) == 3


def test_an_axis_that_is_given_twice_loses_no_values() -> None:
    problem = problem_of("a=1,2", "b=3", "a=4")
    assert "a is there twice, as a=1,2 and a=4; write all values after one a=" in problem


def test_an_empty_space_is_refused() -> None:
    assert "there is nothing to vary" in problem_of()


def test_later_axes_win_in_their_place() -> None:
    in_file = {"a": [1, 2], "b": 3}
    assert list(read_space(["a=4"], data=in_file).points()) == [("a=4", "b=3")]
    # else its points would differ in a.b alone, which has no effect
    assert grid("a.b=1,2", "ab=3", "a={b: 4}") == [("ab=3", "a={b: 4}")]
    assert grid("a={b: 4}", "a.c=1,2") == [("a={b: 4}", "a.c=1"), ("a={b: 4}", "a.c=2")]


def test_values_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red seven, large\n\n  a blue one \n", encoding="utf-8")
    space = read_space([f"prompt=file:{file}"])
    assert [load_config(None, p)["prompt"] for p in space.points()] == [
        "a red seven, large",
        "a blue one",
    ]
    file.write_text("\n")
    assert "has no values" in problem_of(f"prompt=file:{file}")
    file.write_bytes(b"\xff")
    assert "is not UTF-8" in problem_of(f"prompt=file:{file}")


def test_a_space_in_yaml_is_that_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    file = tmp_path / "space.yaml"
    file.write_text(
        f"""
lr: [1e-4, 3e-4]
wd: log(1e-5, 1e-2)
seed: range(5)
optimizer:
  name: [adam, sgd]
  momentum: {{uniform: [0, 1]}}
sizes: [[64, 64], [128]]
prompt: {{file: {tmp_path}/prompts.txt}}
title: a red seven, large
on: [off, "off"]
"""
    )
    written = [
        "lr=1e-4,3e-4",
        "wd=log:1e-5:1e-2",
        "seed=range:5",
        "optimizer.name=adam,sgd",
        "optimizer.momentum=uniform:0:1",
        "sizes=[64, 64],[128]",
        f"prompt=file:{tmp_path}/prompts.txt",
        'title="a red seven, large"',
        'on=off,"off"',
    ]
    from_file, from_line = read_space([], file), read_space(written)
    assert from_file.axes[:7] == from_line.axes[:7]
    assert from_file.axes[7] == Choice("title", ("a red seven, large",))
    assert from_file.axes[8] == from_line.axes[8]
    assert read_space(["lr=1"], file).axes[0] == Choice("lr", ("1",))


def test_a_space_in_python() -> None:
    assert read_space((), data={"n": range(3, 0, -1)}).axes == (Choice("n", ("3", "2", "1")),)
    data = {"a": [1, 2.5, "x", None, True, "1"], "b": range(2), "c": {"log": [1, 10]}, "d": 3}
    space = read_space((), data=data)
    assert [load_config(None, [f"a={v}"])["a"] for v in space.axes[0].grid or ()] == data["a"]
    assert space.axes[1:] == (
        Interval("b", 0, 1, 1, is_int=True),
        Interval("c", 1, 10, is_log=True),
        Choice("d", ("3",)),
    )
    with pytest.raises(ConfigError, match="is not JSON"):
        read_space((), data={"x": [object()]})


def test_a_grid_is_extended_by_values_that_it_lacks_however_they_are_written() -> None:
    space = read_space(["lr=0.1,0.2", "n=range:3", "flag=true"])
    more = space.extended(
        read_space(["lr=1e-1,.3", "n=0x2,3", "flag=True,null"]).axes, is_sampled=False
    )
    assert [axis.describe() for axis in more.axes] == ["0.1, 0.2, .3", "0, 1, 2, 3", "true, null"]


def test_a_space_in_one_string_is_answered_with_a_list() -> None:
    with pytest.raises(ConfigError, match=r"write \['lr=1,2', 'n=3'\]"):
        read_space("lr=1,2 n=3")


def test_endless_axes_have_no_count() -> None:
    space = read_space(["lr=log:1e-5:1", "x=1,2"])
    assert space.count is None
    assert [axis.name for axis in space.endless] == ["lr"]


@pytest.mark.slow
def test_100_000_points_stream() -> None:
    space = read_space(["a=range:100", "b=range:100", "c=range:10"])
    assert space.count == 100_000
    assert collections.deque(space.points(), maxlen=1) == deque_of("a=99", "b=99", "c=9")
    tracemalloc.start()
    for _ in itertools.islice(space.points(), 2_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000  # bytes; other threads of the process count, too


def deque_of(*point: str) -> collections.deque[tuple[str, ...]]:
    return collections.deque([point])


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats()
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"\A[a-z]+\Z"), inner, max_size=2)
    ),
    max_leaves=5,
)


def _same(left: Any, right: Any) -> bool:
    return json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)


@given(st.lists(_JSON, min_size=1, max_size=4, unique_by=lambda v: json.dumps(v, sort_keys=True)))
def test_any_value_of_python_comes_back_as_it_was(values: list[Any]) -> None:
    if any("${" in json.dumps(value) or "???" in json.dumps(value) for value in values):
        return  # means something else in a config
    nested = json.dumps([value for value in values if isinstance(value, list | dict)])
    if "NaN" in nested or "Infinity" in nested:
        return  # JSON has neither
    space = read_space((), data={"x": values})
    found = [load_config(None, point)["x"] for point in space.points()]
    assert all(map(_same, found, values))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_the_points_are_the_product(sizes: list[int]) -> None:
    overrides = [f"a{i}=range:{size}" for i, size in enumerate(sizes)]
    space = read_space(overrides)
    product = itertools.product(*(range(size) for size in sizes))
    expected = [tuple(f"a{i}={v}" for i, v in enumerate(values)) for values in product]
    assert space.count == math.prod(sizes)
    assert list(space.points()) == expected
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
def test_any_string_is_split_or_refused(written: str) -> None:
    try:
        values = split_values("x", written)
    except ConfigError:
        return
    assert len(values) <= written.count(",") + 1


@given(
    st.integers(-1000, 1000),
    st.integers(1, 50).map(lambda n: n / 10),
    st.integers(1, 30),
)
def test_steps_of_decimals_are_exact(low: int, step: float, count: int) -> None:
    high = low + (count - 1) * step
    (axis,) = read_space([f"x=uniform:{low}:{high!r}:{step!r}"]).axes
    assert axis.grid is not None
    assert len(axis.grid) == count
    assert all(len(value) < 10 for value in axis.grid)
