"""Finds an earlier run whose result is that of a prepared one; or says what differs."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_experiments.backends.base import INSTALLED, Backend
from ml_experiments.cache.layout import repo_folder
from ml_experiments.errors import ConfigError, RunFolderError
from ml_experiments.experiment.reference import parse_experiment_path
from ml_experiments.runner.reuse.describing import recorded_config
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.index.filters import RunFilter
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.environment import package_versions
from ml_experiments.runs.provenance.fingerprint import Fingerprint
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.reports.diff import YES, Difference, compare_fields
from ml_experiments.runs.reports.values import MISSING, shown
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun
from ml_experiments.serialization.checksums import hash_file, read_checksums

# among so many of the newest runs of the experiment, the nearest one is looked for
_MAX_NEAREST = 50
_MAX_CONDITIONS = 20
_MAX_STRING = 200
_MAX_NUMBER = 2**63
_MAIN = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HASH_LENGTH = 12


@dataclass(frozen=True)
class Search:
    """What was found for a prepared run.

    Attributes:
        found: The run whose result is taken; None if there is none.
        nearest: The run that differs least from it; None if there is none.
        differences: What differs from the nearest.
    """

    found: RunFolder | None = None
    nearest: RunFolder | None = None
    differences: tuple[Difference, ...] = ()

    def __str__(self) -> str:
        """Return what to tell a user, in a sentence."""
        if self.found is not None:
            return f"run {self.found.path.name} depends on the same"
        if self.nearest is None:
            return (
                "there is no earlier run to compare with, one of this experiment that has "
                "succeeded and recorded what it depends on"
            )
        names = [difference.what for difference in self.differences]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        return (
            f"no earlier run depends on the same; the nearest one, {self.nearest.path.name}, "
            f"differs in {', '.join(names[:5])}{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what was found as JSON."""
        return {
            "run_id": self.found.path.name if self.found else None,
            "nearest": self.nearest.path.name if self.nearest else None,
            "differences": [
                {"what": each.what, "earlier": each.first, "now": each.second}
                for each in self.differences
            ],
        }


def find_earlier(prepared: PreparedRun, backend: Backend, runs_dir: Path) -> Search:
    """Return the newest run whose result a prepared one would come to, or else the nearest.

    Args:
        prepared: The run.
        backend: Its backend.
        runs_dir: Where the earlier runs are.
    """
    same = find_same(prepared, backend, runs_dir)
    if same is not None:
        return Search(found=same)
    nearest = Search()
    for folder in _candidates(prepared, RunRegistry(runs_dir), _MAX_NEAREST, None):
        found = tuple(differences(prepared, backend, folder))
        if nearest.nearest is None or len(found) < len(nearest.differences):
            nearest = Search(None, folder, found)
    return nearest


def find_same(prepared: PreparedRun, backend: Backend, runs_dir: Path) -> RunFolder | None:
    """Return the newest run whose result a prepared one would come to; None if there is none."""
    condition = _condition(recorded_config(prepared))
    for folder in _candidates(prepared, RunRegistry(runs_dir), None, condition):
        if not any(differences(prepared, backend, folder)):
            return folder
    return None


def _candidates(
    prepared: PreparedRun, registry: RunRegistry, limit: int | None, where: str | None
) -> Iterator[RunFolder]:
    """Yield the runs of the experiment that have succeeded and said what they depend on."""
    name = parse_experiment_path(prepared.spec.experiment).name
    asked = RunFilter(status=(str(RunStatus.SUCCESS),), experiment=name, where=where)
    try:
        rows = registry.rows(limit, asked)
    except ConfigError:  # no run has such a value
        return
    for row in rows:
        folder = RunFolder(registry.runs_dir / row.run_id)
        with contextlib.suppress(RunFolderError):  # a damaged one
            if folder.read_manifest().fingerprint is not None:
                yield folder


def _condition(config: Mapping[str, Any]) -> str | None:
    """Return a condition that holds for all runs with this config, and for few others."""
    conditions = []
    for name, value in config.items():
        is_short = isinstance(value, str) and len(value) <= _MAX_STRING and value.isprintable()
        is_number = isinstance(value, int | float) and abs(value) < _MAX_NUMBER
        if is_short or is_number:
            conditions.append(f"config[{name!r}] == {value!r}")
    return " and ".join(conditions[:_MAX_CONDITIONS]) or None


def differences(prepared: PreparedRun, backend: Backend, folder: RunFolder) -> Iterator[Difference]:
    """Yield what an earlier run depends on that is not the same for a prepared one.

    Raises:
        RunFolderError: If a file of the earlier run is not readable.
    """
    spec, manifest, outcome = folder.read_spec(), folder.read_manifest(), folder.outcome()
    before, now = manifest.fingerprint, prepared.fingerprint
    if before is None or now is None:
        yield Difference("source", "not recorded", "known", YES)
        return
    if before.experiment != now.experiment:
        yield Difference("experiment", before.experiment, now.experiment, YES)
    yield from compare_fields("source of ", before.source, now.source, YES)
    yield from compare_fields("file ", before.data, now.data, YES)
    if before.config != now.config:
        yield from compare_fields("config.", spec.config, recorded_config(prepared), YES)
    if not prepared.takes_any_seed and spec.seed != prepared.spec.seed:
        yield Difference("seed", str(spec.seed), str(prepared.spec.seed), YES)
    # sums over ranks are not those of one process
    for name in ("launch", "nproc_per_node", "nodes"):
        one, other = getattr(spec, name), getattr(prepared.spec, name)
        if one != other:
            yield Difference(name, shown(one), shown(other), YES)
    yield from _package_differences(manifest, before, now)
    if before.place != now.place:
        yield Difference("backend and GPU", before.place, now.place, YES)
    yield from _model_differences(prepared, backend, manifest)
    yield from _artifact_differences(outcome)


def _package_differences(
    manifest: Manifest, before: Fingerprint, now: Fingerprint
) -> Iterator[Difference]:
    for found in compare_fields("package ", before.packages, now.packages, YES):
        if found.what != f"package {INSTALLED}":
            yield found
            continue
        recorded = manifest.environment.get("packages") or {}
        named = tuple(compare_fields("package ", recorded, package_versions(), YES))
        yield from named or (found,)


def _model_differences(
    prepared: PreparedRun, backend: Backend, manifest: Manifest
) -> Iterator[Difference]:
    """Yield the models that the earlier run loaded in another revision than this one would."""
    refs = {}
    for named in prepared.hub_models:
        name, _, ref = named.partition("@")
        refs[repo_folder(name)] = ref or _MAIN
    used = {
        repo_folder(str(model.get("repo_id")), str(model.get("kind"))): str(model.get("revision"))
        for model in manifest.cached_models or ()
    }
    for repo in dict.fromkeys((*refs, *used)):
        ref, revision = refs.get(repo, _MAIN), used.get(repo)
        now = ref if _COMMIT.fullmatch(ref) else backend.model_revision(repo, ref)
        if revision is None or now != revision:
            name = repo.partition("--")[2].replace("--", "/")
            shown_now = now[:_HASH_LENGTH] if now else "not in the cache"
            before = revision[:_HASH_LENGTH] if revision else "not recorded"
            yield Difference(f"model {name}", before, shown_now, YES)


def _artifact_differences(outcome: RunResult) -> Iterator[Difference]:
    """Yield the artifacts of an earlier run that are no longer what it left."""
    assert outcome.run_dir is not None  # a run that was found here has one
    hashes = read_checksums(outcome.run_dir)
    for artifact in outcome.artifacts:
        file, size = outcome.run_dir / artifact.path, f"{artifact.size_bytes} bytes"
        try:
            found = file.stat().st_size
            expected = hashes.get(artifact.path)
            digest = None if expected is None else hash_file(file)
        except OSError:
            yield Difference(artifact.path, size, MISSING, YES)
            continue
        if found != artifact.size_bytes:
            yield Difference(artifact.path, size, f"{found} bytes", YES)
        elif digest != expected:
            yield Difference(artifact.path, "as the run left it", "edited", YES)
