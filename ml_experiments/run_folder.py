"""A run folder: one run on disk, readable without this package.

runs/<run_id>/
  spec.json         what was asked for, secrets left out
  manifest.json     code, environment, machine, process
  log.txt           all that the experiment printed
  metrics.jsonl     one line per `log()` call
  result.json       the outcome; there once the run has ended
  artifacts/        files that the run left
  checkpoints/      state from which the same run resumes
"""

from __future__ import annotations

import dataclasses
import json
import mimetypes
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from ml_experiments.errors import RunFolderError
from ml_experiments.files import write_json_atomically
from ml_experiments.redaction import Redactor
from ml_experiments.runs import Artifact, ErrorKind, RunError, RunResult, RunSpec, RunStatus


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes the files of one run."""

    path: Path

    @classmethod
    def create(
        cls, runs_dir: Path, spec: RunSpec, manifest: dict[str, Any], redactor: Redactor
    ) -> RunFolder:
        """Make the folder of a new run; it appears with its spec and manifest, or not at all.

        Raises:
            RunFolderError: If it exists already or can't be written.
        """
        folder = cls(runs_dir / spec.run_id)
        temporary = runs_dir / f".{spec.run_id}.{secrets.token_hex(4)}"
        try:
            temporary.mkdir(parents=True)
            draft = cls(temporary)
            draft.artifacts_dir.mkdir()
            draft.checkpoint_dir.mkdir()
            draft.log_file.touch()
            for file, data in (("spec.json", spec.to_dict()), ("manifest.json", manifest)):
                text = json.dumps(redactor.redact_json(data), indent=2, allow_nan=False)
                (temporary / file).write_text(text + "\n", encoding="utf-8")
            temporary.rename(folder.path)
        except OSError as e:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunFolderError(
                f"the run folder {folder.path} can't be written: {e.strerror}; "
                "set ML_EXPERIMENTS_RUNS_DIR to another place"
            ) from e
        return folder

    @property
    def artifacts_dir(self) -> Path:
        """Where the run's artifacts are."""
        return self.path / "artifacts"

    @property
    def checkpoint_dir(self) -> Path:
        """Where the run keeps state that survives its retries."""
        return self.path / "checkpoints"

    @property
    def log_file(self) -> Path:
        """All that the experiment printed."""
        return self.path / "log.txt"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per `log()` call."""
        return self.path / "metrics.jsonl"

    @property
    def result_file(self) -> Path:
        """The outcome; it exists once the run has ended."""
        return self.path / "result.json"

    def read_spec(self) -> RunSpec:
        """Return what was asked for.

        Raises:
            RunFolderError: If spec.json is missing or not readable.
        """
        try:
            return RunSpec.from_dict(self._read_json("spec.json"))
        except (TypeError, KeyError) as e:
            raise RunFolderError(f"{self.path / 'spec.json'} is not a run spec: {e}") from e

    def read_manifest(self) -> dict[str, Any]:
        """Return provenance: code, environment, machine, process.

        Raises:
            RunFolderError: If manifest.json is missing or not readable.
        """
        return self._read_json("manifest.json")

    def read_result(self) -> RunResult:
        """Return the outcome.

        Raises:
            RunFolderError: If result.json is missing or not readable.
        """
        data = self._read_json("result.json")
        try:
            return RunResult.from_dict(data, run_dir=self.path)
        except (TypeError, KeyError, ValueError) as e:
            raise RunFolderError(f"{self.result_file} is not a run's result: {e}") from e

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield what was logged, in order; a last line cut short by a crash is left out."""
        if not self.metrics_file.is_file():
            return
        with self.metrics_file.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if not line.endswith("\n"):
                    return
                yield json.loads(line)

    def write_spec(self, spec: RunSpec, redactor: Redactor) -> None:
        """Replace what was asked for, when more of it turned out to be secret."""
        write_json_atomically(self.path / "spec.json", redactor.redact_json(spec.to_dict()))

    def write_manifest(self, manifest: dict[str, Any], redactor: Redactor) -> None:
        """Replace the manifest."""
        data = redactor.redact_json(manifest)
        write_json_atomically(self.path / "manifest.json", data, durable=False)

    def write_result(self, result: RunResult, redactor: Redactor) -> RunResult:
        """Write the outcome, secrets left out, and return it as it was written."""
        data = redactor.redact_json({**result.to_dict(), "run_dir": None})
        write_json_atomically(self.result_file, data)
        return RunResult.from_dict(data, run_dir=self.path)

    def list_artifacts(self) -> tuple[Artifact, ...]:
        """Return the files below artifacts/; symbolic links are not followed, nor listed."""
        found = []
        for folder, _, names in os.walk(self.artifacts_dir):
            for name in names:
                file = Path(folder) / name
                if file.is_symlink() or not file.is_file():
                    continue
                media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
                path = file.relative_to(self.path).as_posix()
                found.append(Artifact(path, file.stat().st_size, media_type))
        return tuple(sorted(found, key=lambda artifact: artifact.path))

    def outcome(self) -> RunResult:
        """Return the result, or where a run without one stands.

        A run whose process is gone is an error, never a run that seems to go on.

        Raises:
            RunFolderError: If a file of the folder is not readable.
        """
        if self.result_file.exists():
            return self.read_result()
        spec, manifest = self.read_spec(), self.read_manifest()
        has_started = "process" in manifest or "started_at" in manifest.get("modal", {})
        unfinished = RunResult(
            run_id=spec.run_id,
            status=RunStatus.RUNNING if has_started else RunStatus.PENDING,
            experiment_class=spec.experiment,
            results=None,
            run_dir=self.path,
        )
        process = manifest.get("process") or manifest.get("client")
        # a run that was handed over to Modal goes on without the client
        is_elsewhere = "function_call_id" in manifest.get("modal", {})
        if is_elsewhere or process is None or is_alive(process):
            return unfinished
        lost = RunError(
            kind=ErrorKind.INFRASTRUCTURE,
            type="ProcessLost",
            message=f"process {process['pid']} ended without leaving a result",
            hint=f"`ml-experiments runs resume {spec.run_id}` runs it again from its checkpoints",
        )
        return dataclasses.replace(unfinished, status=RunStatus.ERROR, error=lost)

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise RunFolderError(f"{file} is missing") from e
        except (OSError, ValueError) as e:
            raise RunFolderError(f"{file} is not readable: {e}") from e
        if not isinstance(data, dict):
            raise RunFolderError(f"{file} holds a {type(data).__name__}, not an object")
        return data


def this_process() -> dict[str, Any]:
    """Return what tells this process from any other, for the manifest."""
    process = psutil.Process()
    return {
        "hostname": socket.gethostname(),
        "pid": process.pid,
        "create_time": process.create_time(),
    }


def is_alive(process: dict[str, Any]) -> bool:
    """Return whether a process of a manifest lives; one on another machine is taken to."""
    if process["hostname"] != socket.gethostname():
        return True
    try:
        found = psutil.Process(process["pid"])
        return abs(found.create_time() - process["create_time"]) < 1 and (
            found.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.NoSuchProcess:
        return False
