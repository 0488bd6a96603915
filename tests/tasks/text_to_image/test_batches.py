"""TextToImageExperiment when memory or disk space runs out."""

from __future__ import annotations

import pytest

from ml_experiments import LocalBackend
from tests.support.pictures import (
    FailsInNetwork,
    LimitedFiles,
    LimitedMemory,
    difference,
    draw,
    pixels,
)

pytestmark = pytest.mark.slow


def test_auto_batch_size_halves_until_it_fits_and_says_so(warm_backend: LocalBackend) -> None:
    result = draw(warm_backend, FailsInNetwork, num_images=11, max_pictures=3)
    assert result.results["batch_size"] == 2
    assert result.results["batch_sizes_out_of_memory"] == [11, 5]
    assert result.run_dir is not None
    log = (result.run_dir / "log.txt").read_text()
    assert "out of memory at 11 pictures a batch; going on with 5" in log
    assert "out of memory at 5 pictures a batch; going on with 2" in log
    assert difference(pixels(result), pixels(draw(warm_backend, num_images=11))) <= 1


def test_running_out_of_host_memory_halves_too(warm_backend: LocalBackend) -> None:
    large = {"num_images": 32, "height": 128, "width": 128, "num_inference_steps": 1}
    with LocalBackend() as backend:  # in whose memory no other test has left room
        result = draw(backend, LimitedMemory, max_pictures=16, **large).raise_for_error()
    assert result.results["batch_sizes_out_of_memory"] == [32]
    assert result.results["batch_size"] == 16
    assert difference(pixels(result), pixels(draw(warm_backend, **large))) <= 1


def test_a_single_picture_that_does_not_fit_is_an_error_with_advice(
    warm_backend: LocalBackend,
) -> None:
    result = draw(warm_backend, FailsInNetwork, num_images=2, max_pictures=0)
    assert result.error is not None
    assert (result.error.kind, result.error.type) == ("cuda_oom", "InsufficientMemoryError")
    assert "cpu_offload" in result.error.message


def test_a_batch_size_that_was_asked_for_is_not_changed(warm_backend: LocalBackend) -> None:
    fixed = {"num_images": 4, "batch_size": 4, "max_pictures": 3, "returns_failure": True}
    result = draw(warm_backend, FailsInNetwork, **fixed).raise_for_error()
    assert result.results["type"] == "OutOfMemoryError"


def test_other_failures_are_not_taken_for_a_lack_of_memory(warm_backend: LocalBackend) -> None:
    broken = {"num_images": 4, "failure": "a bug in a kernel", "returns_failure": True}
    result = draw(warm_backend, FailsInNetwork, **broken).raise_for_error()
    assert result.results == {"type": "RuntimeError", "message": "a bug in a kernel"}


def test_a_full_disk_names_the_picture_and_leaves_no_part_of_it(warm_backend: LocalBackend) -> None:
    large = {"num_images": 3, "height": 128, "width": 128, "batch_size": 1}
    result = draw(warm_backend, LimitedFiles, max_bytes=4096, **large)
    assert result.error is not None
    assert result.error.type == "OSError"
    assert "a picture could not be written" in result.error.message
    assert "000-a-red-handwritten-seven.png" in result.error.message
    assert result.artifacts == ()


def test_auto_batch_size_starts_with_many_small_or_few_large_pictures(
    warm_backend: LocalBackend,
) -> None:
    small = draw(warm_backend, num_images=40, num_inference_steps=1)
    large = draw(warm_backend, num_images=2, height=512, width=512, num_inference_steps=1)
    assert small.results["batch_size"] == 32
    assert large.results["batch_size"] == 2
