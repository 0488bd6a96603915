"""The kinds of apps that Modal's public examples show, each as a small app of our own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from uuid import uuid4

import example_kinds as kinds
import modal
import pytest

from modal_emulator import Emulator
from tests.support.emulator_command import MODAL_APPS


@pytest.fixture(scope="module", autouse=True)
def _app(modal_emulator_server: Emulator) -> Iterator[None]:
    with kinds.app.run():
        yield


def test_a_grid_search_by_map_goes_on_after_a_failure() -> None:
    grid = list(product((0.1, 0.5, 2.0), (1, 2)))
    scores = list(kinds.score.starmap(grid, return_exceptions=True))
    assert scores[:4] == [0.1, 0.2, 0.5, 1.0]
    assert [str(each) for each in scores[4:]] == ["diverged at 2.0"] * 2
    best = max((each, pair) for each, pair in zip(scores, grid, strict=True) if pair[0] <= 1)
    assert best == (1.0, (0.5, 2))


def test_a_class_with_parameters_has_containers_of_its_own_for_each_value() -> None:
    models = [kinds.Model(name="x" * (i + 1)) for i in range(8)]
    calls = [model.predict.spawn(10) for model in models]
    answers = [call.get(timeout=60) for call in calls]
    assert [value for value, _ in answers] == [10 * (i + 1) for i in range(8)]
    assert len({task_id for _, task_id in answers}) == 8


def test_dynamic_batching_collects_inputs() -> None:
    words = [f"word {i}" for i in range(8)]
    embedded = list(kinds.embed.map(words))
    assert [word for word, _ in embedded] == [word.upper() for word in words]
    assert max(size for _, size in embedded) == 4


def test_a_pipeline_of_spawns_is_followed_from_call_to_call() -> None:
    second = modal.FunctionCall.from_id(kinds.clean.remote("  hello "))
    assert second.get(timeout=60) == "HELLO"


def test_jobs_that_one_process_submits_are_collected_by_another() -> None:
    call_ids = [kinds.job.spawn(i).object_id for i in range(5)]
    code = (
        "import sys, modal\n"
        "calls = map(modal.FunctionCall.from_id, sys.argv[1:])\n"
        "print([call.get(timeout=60) for call in calls])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *call_ids], capture_output=True, text=True)
    assert done.stdout.strip() == "[0, 1, 4, 9, 16]", done.stderr


def test_a_detached_scatter_and_gather_outlives_its_client(modal_emulator: Emulator) -> None:
    code = (
        "import modal\n"
        "from example_kinds import app, scatter_and_gather\n"
        "with app.run(detach=True):\n"
        "    print(scatter_and_gather.spawn(list(range(20))).object_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=MODAL_APPS
    )
    call = modal.FunctionCall.from_id(done.stdout.strip())
    assert call.get(timeout=60) == sum(i * i for i in range(20)), done.stderr


def test_the_steps_of_a_pipeline_hand_files_over_on_a_volume() -> None:
    name = uuid4().hex
    kinds.download.remote(name, 100)
    assert kinds.count_lines.remote(name) == 100
    assert b"".join(kinds.volume.read_file(name)).startswith(b"0\n1\n")


def test_a_training_function_beside_a_web_endpoint_runs() -> None:
    assert kinds.train.remote(2) == [1.0, 0.5]


def test_a_crash_and_an_exception_are_retried_apart_from_each_other(
    modal_emulator: Emulator,
) -> None:
    assert kinds.flaky.remote(uuid4().hex) == "start 3"
    (found,) = modal_emulator.calls("flaky")[-1].inputs
    # the crash is not one of the retries
    assert (found.attempts, found.starts) == (2, 3)


def test_a_generator_streams_its_values() -> None:
    values = kinds.stream.remote_gen(3)
    assert next(values) == "token 0"
    assert list(values) == ["token 1", "token 2"]
