"""GPUs as nvidia-smi lists them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ml_experiments.runs.provenance.environment import describe_environment


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a stand-in for the program, which prints in its documented CSV form
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'echo "0, NVIDIA A10G, GPU-1f5b, 23028, 550.54.15"\n'
        'echo "1, NVIDIA GB10, GPU-2a, [N/A], 580.1"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert describe_environment()["gpus"] == [
        {
            "index": 0,
            "name": "NVIDIA A10G",
            "uuid": "GPU-1f5b",
            "driver": "550.54.15",
            "memory_bytes": 23028 * 1024**2,
        },
        {"index": 1, "name": "NVIDIA GB10", "uuid": "GPU-2a", "driver": "580.1"},
    ]
    program.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed' >&2\nexit 9\n")
    assert describe_environment()["gpus"] == []
