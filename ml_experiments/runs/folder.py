"""A run folder: one run on disk, readable without this package.

runs/<run_id>/
  spec.json         the request, without secrets
  manifest.json     code, environment, machine, process
  log.txt           all that the experiment printed
  result.json       the outcome; there once the run has ended
  metrics.jsonl     one line per `log()` call   (this and the next, once the run uses them)
  artifacts/        files that the run left
  SHA256SUMS        their hashes, for `sha256sum -c`
  checkpoints/      state from which the same run resumes
  labels.json       its name, tags and note, once one was changed
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import mimetypes
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from ml_experiments.errors import RunExistsError, RunFolderError, SupersededError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.heartbeat import LOST_AFTER_S, forget_cancel, silent_s
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.records import parse_record, read_json_object, read_metrics
from ml_experiments.runs.result import Artifact, ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.checksums import FILE_NAME
from ml_experiments.serialization.files import (
    is_temporary,
    remove_temporary_files,
    write_json_atomically,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What users gave or their code produced. A secret may be an ordinary word, such as `experiment`,
# so the rest of a record is not searched for secrets: it could not be read afterwards.
SPEC_USER_DATA = ("config.*", "name", "tags.*", "backend_options.*")
_ERROR = ("error.message", "error.traceback", "error.hint")
_RESULT_USER_DATA = ("results", *_ERROR, *(f"attempts.{name}" for name in _ERROR))
_MANIFEST_USER_DATA = (
    *("code.diff", "code.problem", "code.untracked", "code.submodules.*"),
    *(f"earlier_attempts.{name}" for name in _ERROR),
)


def make_runs_dir(path: Path) -> None:
    """Make a folder of runs, which git overlooks; one that is there is left as it is.

    Otherwise each run would be a change of the code that the next one records.
    """
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        (path / ".gitignore").write_text("*\n", encoding="utf-8")


# an empty file in the folder of a run that has ended, when its result could not be written
_NOT_WRITTEN = ".result-not-written"


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes the files of one run.

    Attributes:
        path: The folder.
        attempt: The attempt at the run that writes here; it writes no more once another has
            begun. None for one that isn't part of an attempt.
    """

    path: Path
    attempt: int | None = None

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        spec: RunSpec,
        manifest: Manifest,
        redactor: Redactor,
        source: Path | None = None,
    ) -> RunFolder:
        """Make the folder of a new run; it appears with its spec and manifest, or not at all.

        Args:
            runs_dir: Where it goes.
            spec: What to run.
            manifest: What is known of the run.
            redactor: Takes the secrets out.
            source: A file to copy there: an experiment that no other file holds.

        Raises:
            RunExistsError: If there is one of this id.
            RunFolderError: If it can't be written.
        """
        folder = cls(runs_dir / spec.run_id, manifest.attempt)
        temporary = runs_dir / f".{spec.run_id}.{os.urandom(4).hex()}"
        try:
            make_runs_dir(runs_dir)
            temporary.mkdir()
            draft = cls(temporary)
            draft.log_file.touch()
            if source is not None:
                shutil.copyfile(source, temporary / source.name)
            for file, data, user_data in (
                ("spec.json", spec.to_dict(), SPEC_USER_DATA),
                ("manifest.json", manifest.to_dict(), _MANIFEST_USER_DATA),
            ):
                record = redactor.redact_record(data, user_data)
                content = json.dumps(record, indent=2, allow_nan=False)
                (temporary / file).write_text(content + "\n", encoding="utf-8")
            temporary.rename(folder.path)
        except OSError as e:
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.exists(folder.path):  # noqa: PTH110 - False also where that can't be known
                raise RunExistsError(f"there is a run folder {folder.path} already") from e
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
        """Return the request.

        Raises:
            RunFolderError: If spec.json is missing or not readable.
        """
        return self._read("spec.json", "a run spec", lambda data: parse_record(RunSpec, data))

    def read_manifest(self) -> Manifest:
        """Return provenance: code, environment, machine, process.

        Raises:
            RunFolderError: If manifest.json is missing or not readable.
        """
        return self._read(
            "manifest.json", "a run's manifest", lambda data: parse_record(Manifest, data)
        )

    def read_result(self) -> RunResult:
        """Return the outcome.

        Raises:
            RunFolderError: If result.json is missing or not readable.
        """
        return self._read(
            "result.json",
            "a run's result",
            lambda data: RunResult.from_dict(data, run_dir=self.path),
        )

    def _read(self, name: str, what: str, parse: Callable[[dict[str, Any]], T]) -> T:
        file = self.path / name
        data = read_json_object(file)
        try:
            return parse(data)
        except ValueError as e:
            raise RunFolderError(f"{file} is not {what}: {e}") from e

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
        return read_metrics(self.metrics_file)

    def write_spec(self, spec: RunSpec, redactor: Redactor) -> None:
        """Replace the request, when more of it turned out to be secret."""
        data = redactor.redact_record(spec.to_dict(), SPEC_USER_DATA)
        write_json_atomically(self.path / "spec.json", data)

    def write_manifest(self, manifest: Manifest, redactor: Redactor) -> None:
        """Replace the manifest.

        Raises:
            SupersededError: If it is another attempt's by now.
        """
        if self.attempt is not None and manifest.attempt == self.attempt:
            self._check_attempt(self.read_manifest())
        self._put_manifest(manifest, redactor)

    def change_manifest(
        self, change: Callable[[Manifest], Manifest], redactor: Redactor
    ) -> Manifest:
        """Replace the manifest by what a function makes of it, and return that.

        Raises:
            SupersededError: If it is another attempt's by now.
        """
        known = self.read_manifest()
        self._check_attempt(known)
        changed = change(known)
        if changed != known:
            self._put_manifest(changed, redactor)
        return changed

    def _put_manifest(self, manifest: Manifest, redactor: Redactor) -> None:
        data = redactor.redact_record(manifest.to_dict(), _MANIFEST_USER_DATA)
        write_json_atomically(self.path / "manifest.json", data, durable=False)

    def forget_fingerprint(self, redactor: Redactor) -> None:
        """Leave what the run depends on out of the manifest, because it is not known any more."""
        self.change_manifest(
            lambda manifest: dataclasses.replace(manifest, fingerprint=None), redactor
        )

    def write_result(self, result: RunResult, redactor: Redactor) -> RunResult:
        """Write the outcome, secrets left out, and return it as it was written.

        Artifacts that are named after a secret are renamed, so that their records lead to them.

        Raises:
            SupersededError: If another attempt has begun.
        """
        manifest = self.read_manifest()
        self._check_attempt(manifest)
        result = dataclasses.replace(result, attempts=manifest.attempts(result))
        written = redact_result(result, redactor)
        if written.artifacts != result.artifacts:
            self._rename_artifacts(redactor)
        try:
            write_json_atomically(self.result_file, {**written.to_dict(), "run_dir": None})
        except OSError:
            with contextlib.suppress(OSError):  # an empty file has room on most full disks
                (self.path / _NOT_WRITTEN).touch()
            raise
        return dataclasses.replace(written, run_dir=self.path)

    def _rename_artifacts(self, redactor: Redactor) -> None:
        for folder, folders, files in os.walk(self.artifacts_dir, topdown=False):
            for name in (*folders, *files):
                renamed = Path(folder, redactor.redact_file_name(name))
                if renamed.name != name and not renamed.exists():
                    with contextlib.suppress(OSError):
                        Path(folder, name).rename(renamed)

    def begin_attempt(self, manifest: Manifest, redactor: Redactor) -> RunFolder:
        """Begin another attempt, with its manifest; return the folder for it."""
        folder = dataclasses.replace(self, attempt=manifest.attempt)
        dataclasses.replace(self, attempt=None).write_manifest(manifest, redactor)
        for file in (self.result_file, self.path / FILE_NAME, self.path / _NOT_WRITTEN):
            file.unlink(missing_ok=True)
        remove_temporary_files(self.path)
        forget_cancel(self.path)
        with contextlib.suppress(OSError), self.log_file.open("a", encoding="utf-8") as log:
            began_at = (manifest.began_at or "").replace("T", " ")[:19]
            log.write(f"\n--- attempt {len(manifest.earlier_attempts) + 1}, {began_at} UTC ---\n")
        return folder

    def record_preemption(
        self, message: str, timings: dict[str, float], redactor: Redactor
    ) -> None:
        """Record that an attempt was taken away: it is over, and the run goes on in another one.

        Args:
            message: What took it away.
            timings: How long it had executed, as far as is known; see `RunResult`.
            redactor: Takes the secrets out.
        """
        manifest = self.read_manifest()
        error = RunError(ErrorKind.PREEMPTED, "Preempted", message)
        taken = RunResult(manifest.run_id, RunStatus.ERROR, "", error=error, timings=timings)
        attempts = manifest.attempts(taken)
        over = dataclasses.replace(
            manifest, earlier_attempts=attempts, process=None, environment={}
        )
        try:
            self.write_manifest(over, redactor)
        except OSError as e:  # a full disk or volume
            logger.warning("that the run was preempted is not recorded: %s", e)

    def _check_attempt(self, manifest: Manifest) -> None:
        if self.attempt is not None and manifest.attempt != self.attempt:
            raise SupersededError(
                f"attempt {self.attempt} at run {self.path.name} is over; attempt "
                f"{manifest.attempt} has begun"
            )

    def list_artifacts(self) -> tuple[Artifact, ...]:
        """Return the files below artifacts/, and the links to such; no others are followed."""
        found, root = [], self.artifacts_dir.resolve()
        for folder, _, names in os.walk(self.artifacts_dir):
            for name in names:
                file = Path(folder) / name
                if (
                    is_temporary(name)
                    or not file.is_file()
                    or not file.resolve().is_relative_to(root)
                ):
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
        unfinished = RunResult(
            run_id=spec.run_id,
            status=RunStatus.RUNNING if manifest.has_started else RunStatus.PENDING,
            experiment_class=spec.experiment,
            run_dir=self.path,
        )
        process = manifest.process or manifest.client
        waits_for_job = manifest.job is not None and manifest.process is None
        if manifest.is_on_modal or waits_for_job or process is None:
            return unfinished
        is_alive = process.is_alive()
        message = f"process {process.pid} ended without leaving a result"
        if is_alive is None:  # it can't be seen from here
            silence_s = silent_s(self.path)
            is_alive = silence_s < LOST_AFTER_S
            message = f"there was no sign of life from {process.hostname} for {silence_s:.0f} s"
        if (self.path / _NOT_WRITTEN).exists():
            message = "the run has ended, but its result could not be written"
        elif is_alive:
            return unfinished
        lost = RunError(
            kind=ErrorKind.INFRASTRUCTURE,
            type="ProcessLost",
            message=message,
            hint=f"`ml-experiments runs resume {spec.run_id}` runs it again from its checkpoints",
        )
        return dataclasses.replace(unfinished, status=RunStatus.ERROR, error=lost)


def redact_result(result: RunResult, redactor: Redactor) -> RunResult:
    """Return an outcome, secrets left out."""
    record = result.to_dict()
    redacted = redactor.redact_record(record, _RESULT_USER_DATA)
    redacted["artifacts"] = [
        {**artifact, "path": redactor.redact_path(artifact["path"])}
        for artifact in record["artifacts"]
    ]
    if redacted == record:
        return result
    return RunResult.from_dict(redacted, run_dir=result.run_dir)
