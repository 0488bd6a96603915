"""Points that share a set-up go to few workers, whatever the order in which they end."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from ml_experiments.runner.sweeps.schedule import Schedule


def drain(schedule: Schedule, workers: int, rng: random.Random) -> list[int]:
    """Run all points, which end in a random order; return the order in which they started."""
    started: list[int] = []
    running: list[int] = []
    while True:
        while len(running) < workers and (point := schedule.take()) is not None:
            started.append(point)
            running.append(point)
        if not running:
            return started
        schedule.ended(running.pop(rng.randrange(len(running))))


@given(
    st.lists(st.integers(0, 5), max_size=30),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_few_set_ups_and_every_point_once(
    keys: list[int], workers: int, rng: random.Random
) -> None:
    schedule = Schedule(enumerate(keys), workers)
    assert sorted(drain(schedule, workers, rng)) == list(range(len(keys)))
    assert (schedule.setups or 0) <= max(len(set(keys)), workers)


@given(st.integers(0, 20), st.integers(1, 8), st.randoms(use_true_random=False))
def test_points_without_set_ups_start_in_their_order(
    count: int, workers: int, rng: random.Random
) -> None:
    schedule = Schedule([(n, None) for n in range(count)], workers)
    assert drain(schedule, workers, rng) == list(range(count))
    assert schedule.setups is None


def test_one_worker_takes_a_model_after_the_other() -> None:
    schedule = Schedule(enumerate("abab"), 1)
    assert drain(schedule, 1, random.Random(0)) == [0, 2, 1, 3]
    assert schedule.setups == 2


def test_workers_without_a_model_of_their_own_help() -> None:
    schedule = Schedule(enumerate("aaaabb"), 4)
    first = [schedule.take() for _ in range(5)]
    assert first == [0, 4, 1, 2, None] or first == [0, 4, 1, 5, None]
    assert schedule.setups == 4


def test_what_is_upcoming_is_what_starts_when_a_point_of_its_set_up_has_ended() -> None:
    schedule = Schedule([*enumerate("aab"), (3, None)], 2)
    assert [schedule.take(), schedule.take(), schedule.take()] == [3, 0, None]
    assert schedule.upcoming() == 1
    schedule.ended(0)
    assert schedule.take() == 1
    assert schedule.upcoming() is None  # nothing shares a set-up with one that runs
