"""What a user can do about an error of a run in a Modal container."""

from __future__ import annotations

import os
from pathlib import Path

from ml_experiments.backends.modal.gpus import next_larger, parse_gpu
from ml_experiments.execution.failures import is_full
from ml_experiments.execution.hints import Hints
from ml_experiments.experiment.tracebacks import chain
from ml_experiments.runs.result import ErrorKind
from ml_experiments.runs.spec import RunSpec
from ml_experiments.settings import is_emulated

_OWN_PACKAGE = "ml_experiments"
_SOURCE = "/experiment_source/"
# where a container has its volumes, and how each is emptied; a test compares them with the image
_RUNS = (
    Path("/runs"),
    "free space on the volume ml-experiments-runs by deleting old runs, as with: "
    "modal volume rm -r ml-experiments-runs RUN_ID",
)
_CACHE = (
    Path("/cache"),
    "free space on the volume hf-model-cache by deleting models, as with: "
    "ml-experiments cache clear PATTERN",
)


class ModalHints(Hints):
    """Hints for a run in a Modal container."""

    def hint_for(self, kind: ErrorKind, error: BaseException | None, spec: RunSpec) -> str:
        missing = next((e.name for e in chain(error) if isinstance(e, ModuleNotFoundError)), None)
        if missing and missing.startswith(f"{_OWN_PACKAGE}."):
            return (
                f"a container holds the parts of {_OWN_PACKAGE} that every run needs, and those "
                "that import statements of the experiment's modules name: write one, such as "
                f"`from {_OWN_PACKAGE} import run_experiment` for that function"
            )
        return super().hint_for(kind, error, spec)

    def larger_gpu(self, spec: RunSpec) -> str:
        if spec.gpu is None:
            return ""
        largest = max(parse_gpu(spec.gpu).choices, key=lambda choice: choice.memory_gb)
        larger = next_larger(largest)
        return f"use a larger GPU type (next: {larger}), " if larger else ""

    def more_memory(self) -> str:
        return "ask for more: --memory GIB"

    def add_package(self, name: str) -> str:
        add = f"add it with --pip {name}"
        if is_emulated():
            add = f"the emulator has this machine's packages: pip install {name}; on Modal, {add}"
        return (
            f"{add}. A module of your own is sent along where an import statement names it, not "
            "where its name is computed"
        )

    def free_space(self, error: BaseException | None) -> str:
        files = [getattr(e, "filename", None) for e in chain(error) if is_full(e)]
        names = [name for name in files if isinstance(name, str | bytes)]
        if not names:  # an error of a write, unlike one of an open, names no file
            return f"{_RUNS[1]}; or, if it was a download, {_CACHE[1]}"
        for folder, hint in (_RUNS, _CACHE):
            if Path(os.fsdecode(names[0])).is_relative_to(folder):
                return hint
        return (
            "the container's own disk is full: write large files to the run's output_dir or "
            "checkpoint_dir, which are on a volume"
        )

    def other(self, error: BaseException | None) -> str:
        missing = next(filter(None, map(_missing_data, chain(error))), None)
        if missing is None:
            return ""
        if not Path(missing).is_absolute():
            return (
                "a container's working folder has no files of yours: name the file by the place "
                f"of the module, as in Path(__file__).parent / {missing!r}"
            )
        return (
            "data files up to 1 MiB are sent along with the package that they are in, or where a "
            "single file names them in a string: put both in a folder with an __init__.py, or the "
            "data on a volume"
        )


def _missing_data(error: BaseException) -> str | None:
    """Return the file that was looked for beside the source, as a container has it, or nowhere."""
    name = error.filename if isinstance(error, FileNotFoundError) else None
    if not isinstance(name, str) or (Path(name).is_absolute() and _SOURCE not in name):
        return None
    return name
