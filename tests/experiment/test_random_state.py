"""The state of the random number generators travels as JSON."""

from __future__ import annotations

import json
import random

import numpy as np

from ml_experiments.experiment.random_state import random_state, restore_random_state


def test_generators_draw_the_same_after_a_round_trip_through_json() -> None:
    random.gauss()  # leaves half a pair for the next call
    np.random.randn()
    state = json.loads(json.dumps(random_state()))
    drawn = [random.gauss(), random.random(), np.random.randn(), np.random.rand()]
    restore_random_state(state)
    assert drawn == [random.gauss(), random.random(), np.random.randn(), np.random.rand()]


def test_a_generator_that_was_not_saved_stays_as_it_is() -> None:
    state = random_state()
    del state["numpy"]
    before = np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    restore_random_state(state)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index,union-attr]
