"""Executes a run that does nothing, in the template, so that its forks execute theirs faster.

What Python works out once in a process is then there in each fork: codecs, compiled patterns, the
types of records, specialized bytecode. Otherwise each fork would do it again, and copy the pages.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ml_experiments.execution.events import Event, Finished, Started, event_to_json
from ml_experiments.execution.execute import execute_run
from ml_experiments.execution.hints import Hints
from ml_experiments.execution.warm_experiment import WarmExperiment
from ml_experiments.execution.worker.messages import RunMessage
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.records import parse_record
from ml_experiments.runs.spec import RunSpec


def do_nothing() -> None:
    """Do what the rehearsed run does."""


def rehearse() -> None:
    """Execute a run as a worker does, in a temporary folder."""
    spec = RunSpec("rehearsal", f"{__name__}:do_nothing", {}, seed=0, created_at="")
    manifest = Manifest(spec.run_id, seed=0, code={"commit": None}, client=this_process())
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.create(Path(scratch), spec, manifest, Redactor(()))
        message = RunMessage(
            spec=spec,
            folder=str(folder.path),
            attempt=manifest.attempt,
            output=str(folder.log_file),
            began_at=None,
            secrets=(),
            setup_key=None,
            hints="",
            reports_models=False,
        )
        received = parse_record(RunMessage, json.loads(json.dumps(message.to_dict())))
        _serialize(Started())
        result = execute_run(
            received.spec, folder, emit=_serialize, warm=WarmExperiment(), hints=Hints()
        )
        _serialize(Finished(result=result.to_dict()))


def _serialize(event: Event) -> None:
    json.dumps(event_to_json(event))
