"""What a prepared run depends on: its fingerprint, worked out before anything starts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_experiments.backends.base import Backend
from ml_experiments.backends.modal.preflight.import_graph import (
    OWN_EXPERIMENTS,
    OWN_PACKAGE,
    ImportGraph,
    walk_imports,
)
from ml_experiments.backends.modal.preflight.staging import named_files
from ml_experiments.errors import PreflightError
from ml_experiments.experiment.reference import parse_experiment_path
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import SPEC_USER_DATA
from ml_experiments.runs.provenance.fingerprint import (
    Fingerprint,
    SourceFiles,
    hash_of,
    hash_of_file,
    stamp_of,
)
from ml_experiments.runs.spec import PreparedRun, RunSpec

# of the experiments that this process has prepared
_known: dict[tuple[str, tuple[str, ...]], SourceFiles] = {}


def with_fingerprint(run: PreparedRun, backend: Backend) -> PreparedRun:
    """Return a prepared run with what its result depends on."""
    spec = run.spec
    # of a run on Modal, the imports are known already
    imports = getattr(run.plan, "imports", None)
    config, files = recorded_config(run), describe_source(spec, imports)
    parsed = parse_experiment_path(spec.experiment)
    fingerprint = Fingerprint(
        experiment=f"{parsed.module}:{parsed.name}",
        source=files.source,
        data={**files.data, **dict(_hashes_of_named(config))},
        config=hash_of(config),
        packages=backend.packages(run),
        place=" ".join(filter(None, (spec.backend, spec.gpu))),
    )
    return dataclasses.replace(run, fingerprint=fingerprint, source=files)


def recorded_config(run: PreparedRun) -> dict[str, Any]:
    """Return the config of a run as its record has it: without secrets."""
    redactor = Redactor(run.secrets)
    config: dict[str, Any] = redactor.redact_record(run.spec.to_dict(), SPEC_USER_DATA)["config"]
    return config


def describe_source(spec: RunSpec, imports: ImportGraph | None = None) -> SourceFiles:
    """Return the hashes of the user's own modules that an experiment imports.

    One that is imported from an installed package has none: its version stands for it.

    Args:
        spec: A run of the experiment.
        imports: What it imports; looked for by default.
    """
    key = spec.experiment, spec.import_paths
    known = _known.get(key)
    if known is None or known.have_changed():
        known = _known[key] = _read_source(imports or _imports_of(spec))
    return known


def _imports_of(spec: RunSpec) -> ImportGraph:
    parsed = parse_experiment_path(spec.experiment)
    paths = [parsed.root] if parsed.root else []
    try:
        return walk_imports(
            parsed.module, [*paths, *map(Path, spec.import_paths)], follows_own_package=False
        )
    except PreflightError:  # of an installed package
        return ImportGraph((), (), ())


def _read_source(imports: ImportGraph) -> SourceFiles:
    found = SourceFiles()
    for module in imports.modules:
        is_own = module.name.partition(".")[0] == OWN_PACKAGE  # its version stands for it
        if module.path.is_dir() or (is_own and not module.name.startswith(OWN_EXPERIMENTS)):
            continue
        with contextlib.suppress(OSError):  # removed meanwhile
            _add(found, found.source, module.name, module.path)
        with contextlib.suppress(OSError, SyntaxError, ValueError, RecursionError):
            for file in named_files(module.path) if module.path.suffix == ".py" else ():
                _add(found, found.data, file.relative_to(module.path.parent).as_posix(), file)
    return found


def _add(found: SourceFiles, hashes: dict[str, str], name: str, file: Path) -> None:
    found.stamps[str(file)] = stamp_of(str(file))  # before: what changes meanwhile is read again
    hashes[name] = hash_of_file(file)


def _hashes_of_named(value: Any, field: str = "config") -> Iterator[tuple[str, str]]:
    """Yield the fields of a config that name files, with the hashes of these."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _hashes_of_named(inner, f"{field}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _hashes_of_named(inner, f"{field}[{index}]")
    elif isinstance(value, str):
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # a string that no path can be
            file = Path(value).expanduser()
            if file.is_file():
                yield field, hash_of_file(file)
