"""Run folders as a run writes them, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.result import Attempt, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec


def write_run(
    runs_dir: Path,
    run_id: str,
    *,
    config: dict[str, Any] | None = None,
    results: Any = None,
    status: str | None = "success",
    cost_usd: float | None = None,
    manifest: dict[str, Any] | None = None,
    **spec: Any,
) -> RunFolder:
    """Write the folder of a run that has ended; with status None, of one that has not."""
    date = f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}T00:00:00.000+00:00"
    given = {"experiment": "train.Train", "seed": 1, "created_at": date, **spec}
    redactor = Redactor(())
    record = Manifest(run_id=run_id, seed=given["seed"], **(manifest or {}))
    asked = RunSpec(run_id=run_id, config=config or {}, **given)
    folder = RunFolder.create(runs_dir, asked, record, redactor)
    if status is not None:
        ended = RunStatus(status)
        result = RunResult(
            run_id=run_id,
            status=ended,
            experiment_class=given["experiment"],
            results_json=results,
            timings={"total_s": 1.5},
            attempts=(Attempt(1, ended, "here", date, 1.5, cost_usd=cost_usd),),
        )
        # as it is: `write_result` adds the attempts of the manifest
        (folder.path / "result.json").write_text(json.dumps(result.to_dict()))
    return folder
