"""What a run may leave in its artifacts besides ordinary files."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import current_run, run_experiment
from ml_experiments.runs.result import RunResult, RunStatus

ODD_NAMES = (
    *("a\nb", "con", "a:b", "..x", "...", " ", "a\\b", "-rf", "'\"", "\x1b[31m", "é", "%00", "*"),
    "n" * 255,
)


def leave(config: dict[str, Any]) -> int:
    folder = current_run().output_dir
    if config["what"] == "odd names":
        for name in ODD_NAMES:
            (folder / name).write_text(name)
    elif config["what"] == "special":
        os.mkfifo(folder / "fifo")
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(folder)  # a socket's path may have about 100 characters
            server.bind("socket")
        (folder / "device").symlink_to("/dev/zero")
        (folder / "outside").symlink_to("/etc/hostname")
        (folder / "loop").symlink_to("loop")
        (folder / "dangling").symlink_to("nowhere")
        (folder / "file").write_text("f")
    else:
        for number in range(10_000):
            (folder / str(number)).touch()
    return 1


def run(what: str) -> RunResult:
    result = run_experiment(leave, {"what": what})
    assert result.status is RunStatus.SUCCESS, result.error
    return result


def test_artifacts_with_odd_names_are_all_recorded() -> None:
    result = run("odd names")
    assert result.run_dir is not None
    assert sorted(a.path for a in result.artifacts) == sorted(f"artifacts/{n}" for n in ODD_NAMES)
    assert all((result.run_dir / a.path).stat().st_size == a.size_bytes for a in result.artifacts)


def test_fifos_sockets_devices_and_links_that_lead_out_are_no_artifacts() -> None:
    assert [a.path for a in run("special").artifacts] == ["artifacts/file"]


def large(megabytes: int = 200) -> dict[str, Any]:
    import numpy as np

    return {"array": np.arange(megabytes * 125_000, dtype=float), "string": "é" * 10_000_000}


@pytest.mark.slow
def test_a_result_of_200_mb_comes_back_whole() -> None:
    result = run_experiment(large)
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.artifacts[0].size_bytes > 200_000_000
    assert result.load(result.results["array"])[-1] == 24_999_999
    assert len(result.results["string"]) == 10_000_000


@pytest.mark.slow
def test_ten_thousand_small_artifacts_are_recorded() -> None:
    assert len(run("many").artifacts) == 10_000


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b"])
def test_a_descriptor_that_names_a_file_outside_the_run_folder_is_refused(
    name: str, tmp_path: Path
) -> None:
    result = RunResult("r", RunStatus.SUCCESS, "m:C", run_dir=tmp_path)
    with pytest.raises(Exception, match="not a path inside a run folder"):
        result.load({"$type": "bytes", "path": name})
