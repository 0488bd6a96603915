"""A run folder: one run on disk, readable without this package.

runs/<run_id>/
  spec.json         what was asked for, secrets left out
  manifest.json     code, environment, machine, process
  log.txt           all that the experiment printed
  result.json       the outcome; there once the run has ended
  metrics.jsonl     one line per `log()` call   (this and the next, once the run uses them)
  artifacts/        files that the run left
  checkpoints/      state from which the same run resumes
"""

from __future__ import annotations

import dataclasses
import json
import logging
import mimetypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ml_experiments.errors import RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.provenance.processes import is_alive, this_process
from ml_experiments.runs.result import Artifact, ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.files import parse_strict_json, write_json_atomically

__all__ = ["RunFolder", "is_alive", "this_process"]

logger = logging.getLogger(__name__)

_TEXT_OR_NONE = (str, type(None))
_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("run_id", "experiment", "experiment_class", "created_at", "backend"), str),
    **dict.fromkeys(("type", "message", "traceback", "hint", "path", "media_type"), str),
    **dict.fromkeys(("gpu", "name"), _TEXT_OR_NONE),
    **dict.fromkeys(("config", "tags", "backend_options", "environment"), dict),
    **dict.fromkeys(("timings", "cost"), dict),
    **dict.fromkeys(("artifacts", "import_paths"), list),
    **dict.fromkeys(("seed", "size_bytes"), int),
    "timeout_s": (int, float, type(None)),
}
_MEMORY_USE = ("peak_memory_bytes", "peak_gpu_memory_bytes")


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
            draft.log_file.touch()
            for file, data in (("spec.json", spec.to_dict()), ("manifest.json", manifest)):
                text = json.dumps(redactor.redact_json(data), indent=2, allow_nan=False)
                (temporary / file).write_text(text + "\n", encoding="utf-8")
            temporary.rename(folder.path)
        except OSError as e:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RunFolderError(
                f"the run folder {folder.path} can't be written: {e.strerror}; "
                "choose another place with runs_dir or ML_EXPERIMENTS_RUNS_DIR"
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
        data = self._read_json("spec.json")
        try:
            spec = RunSpec.from_dict(data)
            _check_types(spec, data)
        except (TypeError, KeyError, ValueError) as e:
            raise RunFolderError(
                f"{self.path / 'spec.json'} is not a run spec: {_describe(e)}"
            ) from e
        return spec

    def read_manifest(self) -> dict[str, Any]:
        """Return provenance: code, environment, machine, process.

        Raises:
            RunFolderError: If manifest.json is missing or not readable.
        """
        manifest = self._read_json("manifest.json")
        try:
            _check_manifest(manifest)
        except (TypeError, KeyError) as e:
            raise RunFolderError(
                f"{self.path / 'manifest.json'} is not a run's manifest: {_describe(e)}"
            ) from e
        return manifest

    def read_result(self) -> RunResult:
        """Return the outcome.

        Raises:
            RunFolderError: If result.json is missing or not readable.
        """
        data = self._read_json("result.json")
        try:
            result = RunResult.from_dict(data, run_dir=self.path)
            _check_types(result, data)
        # an OSError comes of a time zone that is a folder of the system's
        except (TypeError, KeyError, ValueError, OSError, RunFolderError) as e:
            raise RunFolderError(f"{self.result_file} is not a run's result: {_describe(e)}") from e
        return result

    def open_metrics(self) -> TextIO:
        """Open metrics.jsonl for more lines; a last one that was cut short is ended first.

        Raises:
            OSError: If it can't be written.
        """
        with self.metrics_file.open("ab+") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                # otherwise the next line would be lost with the one that a kill cut short
                if file.read(1) != b"\n":
                    file.write(b"\n")
        return self.metrics_file.open("a", encoding="utf-8", buffering=1)

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield what was logged, in order; lines that are not whole are left out, with a warning.

        Raises:
            RunFolderError: If metrics.jsonl can't be read.
        """
        damaged: list[int] = []
        try:
            with self.metrics_file.open(encoding="utf-8", errors="replace", newline="\n") as file:
                for number, line in enumerate(file, 1):
                    entry = _parse_metrics(line)
                    if entry is not None:
                        yield entry
                    elif line.endswith("\n") and line.strip():  # the last may be half written yet
                        damaged.append(number)
        except FileNotFoundError:
            return
        except OSError as e:
            raise RunFolderError(f"{self.metrics_file} is not readable: {e.strerror}") from e
        if damaged:
            logger.warning(
                "%s: %d lines are damaged and were left out, the first is line %d",
                *(self.metrics_file, len(damaged), damaged[0]),
            )

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
        """Return the files below artifacts/, and the links to such; no others are followed."""
        found, root = [], self.artifacts_dir.resolve()
        for folder, _, names in os.walk(self.artifacts_dir):
            for name in names:
                file = Path(folder) / name
                if not file.is_file() or not file.resolve().is_relative_to(root):
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
            data = parse_strict_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise RunFolderError(f"{file} is missing") from e
        except (OSError, ValueError, RecursionError) as e:
            raise RunFolderError(f"{file} is not readable: {e}") from e
        if not isinstance(data, dict):
            raise RunFolderError(f"{file} holds a {type(data).__name__}, not an object")
        return data


def _parse_metrics(line: str) -> dict[str, Any] | None:
    try:
        entry = parse_strict_json(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _check_types(record: RunSpec | RunResult, data: Mapping[str, Any]) -> None:
    """Raise TypeError for a field whose value is of another type than the record's."""
    parts: list[Mapping[str, Any]] = [data]
    if isinstance(record, RunResult):
        parts += [*data["artifacts"], *([data["error"]] if data["error"] else [])]
    for part in parts:
        for name, value in part.items():
            if not isinstance(value, _FIELD_TYPES.get(name, object)):
                raise TypeError(f"{name} is a {type(value).__name__}")
    if isinstance(record, RunResult):
        use = {name: record.environment.get(name, 0) for name in _MEMORY_USE}
        for name, value in (*record.timings.items(), *record.cost.items(), *use.items()):
            if type(value) not in (int, float) or abs(value) > sys.float_info.max:
                raise TypeError(f"{name} is {value!r:.50}, not a number")


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise TypeError or KeyError unless what is read of a manifest is as it's written."""
    for name in ("modal", "process", "client"):
        if not isinstance(manifest.get(name, {}), dict):
            raise TypeError(f"{name} is a {type(manifest[name]).__name__}, not an object")
    for name in ("process", "client"):
        process = manifest.get(name)
        if process and not (
            isinstance(process["hostname"], str)
            and type(process["pid"]) is int
            and 0 < process["pid"] < 2**31
            and isinstance(process.get("create_time", 0.0), int | float)
        ):
            raise TypeError(f"{name} is {dict(process)!r:.100}, not a process")


def _describe(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
