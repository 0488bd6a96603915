"""What a user can do about an error of a run; a backend adds what holds where it executes."""

from __future__ import annotations

import dataclasses
import resource

from ml_experiments.errors import ExperimentPathError, RunFolderError
from ml_experiments.execution.failures import (
    describe_failure,
    is_disk_full,
    is_shared_memory_full,
    is_without_room,
)
from ml_experiments.experiment.pip_names import pip_name
from ml_experiments.experiment.tracebacks import NEEDS_TERMINAL_HINT, chain, needs_terminal
from ml_experiments.runs.result import ErrorKind, RunError
from ml_experiments.runs.spec import RunSpec

SHARED_MEMORY_HINT = (
    "shared memory (/dev/shm) is full: lower num_workers or prefetch_factor of data loaders, or "
    "what their processes pass on; in Docker, raise --shm-size"
)


def file_size_hint() -> str:
    """Return how to raise the limit that this process has for the size of a file, if any."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit == resource.RLIM_INFINITY:
        return ""
    return f"a file may have {limit / 1e6:,.0f} MB at most here; `ulimit -f unlimited` raises that"


def describe_damaged_folder(error: RunFolderError) -> RunError:
    """Return the error of a run whose own records are gone or unreadable at its end."""
    hint = (
        "something has changed the files of the run folder, perhaps the run itself; "
        "a run has the folders output_dir and checkpoint_dir of current_run() for its files"
    )
    return RunError(ErrorKind.INFRASTRUCTURE, type(error).__name__, str(error), hint=hint)


class Hints:
    """Hints for a run on this machine. A backend overrides the methods below `hint_for`."""

    def describe(self, error: BaseException, spec: RunSpec) -> RunError:
        """Return the error of a run that this exception ended."""
        failure = describe_failure(error)
        return dataclasses.replace(failure, hint=self.hint_for(failure.kind, error, spec))

    def hint_for(self, kind: ErrorKind, error: BaseException | None, spec: RunSpec) -> str:
        """Return what to do about an error of this kind; empty when nothing is known."""
        match kind:
            case ErrorKind.CUDA_OOM:
                return (
                    f"{self.larger_gpu(spec)}lower batch_size or the image size, or quantize (int8)"
                )
            case ErrorKind.HOST_OOM if is_shared_memory_full(error):
                return SHARED_MEMORY_HINT
            case ErrorKind.HOST_OOM:
                less = "lower batch_size or the amount of data held in memory"
                return f"{less}, or {self.more_memory()}"
            case ErrorKind.TIMEOUT:
                given = f"it is {spec.timeout_s:g} s now" if spec.timeout_s else "none is set"
                return (
                    f"raise the timeout ({given}), use a faster GPU type, or do less per run; "
                    "what the run saved in checkpoint_dir is kept: `ml-experiments runs resume "
                    f"{spec.run_id}` continues from there"
                )
            case ErrorKind.IMPORT if missing := _missing_module(error):
                if "." not in missing:
                    return self.add_package(pip_name(missing))
                # the package is installed, or another package of its namespace is
                add = self.add_package("NAME")
                return f"nothing that is installed has {missing}; if it is a package's, {add}"
            case ErrorKind.AUTH:
                return (
                    "accept the model's terms on its page and set HF_TOKEN to a token that may "
                    "read it"
                )
            case ErrorKind.EXPERIMENT if needs_terminal(error) and spec.backend != "debug":
                return NEEDS_TERMINAL_HINT
            case ErrorKind.INFRASTRUCTURE if is_disk_full(error):
                size_hint = "" if is_without_room(error) else file_size_hint()
                return size_hint or self.free_space(error)
        return self.other(error)

    def larger_gpu(self, spec: RunSpec) -> str:  # noqa: ARG002 - for backends with a choice
        """Return the advice to use a larger GPU type, with `, ` at its end; empty without one."""
        return ""

    def more_memory(self) -> str:
        """Return how to get more host memory."""
        return "use a larger machine"

    def add_package(self, name: str) -> str:
        """Return how to install a package where the run executes."""
        return f"pip install {name}"

    def free_space(self, error: BaseException | None) -> str:  # noqa: ARG002 - see above
        """Return how to free disk space."""
        return "free some disk space, or set ML_EXPERIMENTS_RUNS_DIR to a larger disk"

    def other(self, error: BaseException | None) -> str:  # noqa: ARG002 - see above
        """Return the hint for an error of any other kind; empty when nothing is known."""
        return ""


def _missing_module(error: BaseException | None) -> str | None:
    if isinstance(error, ExperimentPathError):
        return error.missing_module
    return next((e.name for e in chain(error) if isinstance(e, ModuleNotFoundError)), None)
