"""The life of a container, divided among its runs."""

from __future__ import annotations

import time

import psutil
import pytest

from ml_experiments.backends.modal.container import paid_time
from ml_experiments.backends.modal.container.paid_time import PaidTime, seconds_since_start


def test_the_runs_of_a_container_count_all_of_its_life() -> None:
    times = iter([4.0, 10.0, 10.5])
    paid = PaidTime(lambda: next(times))
    counted = [paid.take_s(idle_s=60) for _ in range(3)]
    # the first has the start and the last wait
    assert counted == [4.0 + 60 + paid_time._SHUTDOWN_S, 6.0, 0.5]


def test_a_clock_that_is_set_back_counts_nothing_twice() -> None:
    times = iter([4.0, 3.0, 5.0])
    paid = PaidTime(lambda: next(times))
    assert [paid.take_s(0) for _ in range(3)][1:] == [0.0, 2.0]


def test_the_clock_counts_from_the_start_of_the_process() -> None:
    expected = time.time() - psutil.Process().create_time()
    assert seconds_since_start() == pytest.approx(expected, abs=1.5)
