"""What is copied from the volume into the folder of a run."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from ml_experiments.backends.modal.fetching import fetch_run_folder
from ml_experiments.backends.modal.mounts import runs_volume
from modal_emulator import Emulator

RUN_ID = "20260101-000000-0000004"


@pytest.mark.parametrize("has_result", [False, True])
def test_a_result_that_came_with_the_call_is_not_fetched_again(
    has_result: bool, modal_emulator: Emulator, tmp_path: Path
) -> None:
    assert modal_emulator.environment
    with runs_volume().batch_upload(force=True) as batch:
        for name in ("manifest.json", "result.json", "log.txt"):
            batch.put_file(io.BytesIO(b"{}"), f"/{RUN_ID}/{name}")
    try:
        fetched = fetch_run_folder(runs_volume(), RUN_ID, tmp_path, has_result=has_result)
    finally:  # others look at all runs there
        runs_volume().remove_file(f"/{RUN_ID}", recursive=True)
    assert fetched.has_new_result != has_result
    expected = {"log.txt"} if has_result else {"log.txt", "result.json"}
    assert {file.name for file in tmp_path.iterdir()} == expected
