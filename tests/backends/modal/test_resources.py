"""CPU and memory that a container asks for."""

from __future__ import annotations

import numpy as np

from ml_experiments.backends.modal.gpus import parse_gpu
from ml_experiments.backends.modal.resources import (
    check_cpu,
    check_memory,
    check_timeout,
    host_resources,
)


def test_resources_have_limits_that_grow_with_the_gpus() -> None:
    default = host_resources(parse_gpu("a10g"))
    assert default.cpu_cores == (0.125, 16)
    assert default.memory_mib == (128, 48 * 1024)
    assert host_resources(parse_gpu("t4,h100:8")).cpu_cores[1] == 64
    assert host_resources(parse_gpu("h100:8")).max_memory_gib == 2 * 8 * 80
    assert host_resources(parse_gpu("t4"), cpu=40).cpu_cores == (40, 40)
    assert host_resources(parse_gpu("t4"), cpu=0.5).cpu_cores == (0.5, 16)
    assert host_resources(parse_gpu("t4"), memory_gib=100).memory_mib == (102400, 102400)


def test_numbers_of_numpy_are_numbers() -> None:
    assert type(check_timeout(np.int64(300))) is int
    assert check_cpu(np.float32(0.5)) == 0.5
    assert check_memory(np.array(1024)) == 1024
