"""Every exception that this package raises on purpose.

Error
├── ConfigError               a config file, override or field is not valid
├── ExperimentPathError       a class path does not lead to an experiment
├── GpuTypeError              a GPU type, count or fallback list is not valid
├── PreflightError            the run could not work where it would be sent
├── BackendError              the place where runs execute refused or failed
│   ├── AuthError             no credentials, or rejected ones
│   ├── UnknownPriceError     no price is known for a GPU type
│   └── RunNotCollectedError  a run was handed over, but its outcome could not be brought here
├── BudgetError               what may be spent does not suffice, or isn't known
├── CacheError                a cache pattern, folder or download is not usable
├── RunNotFoundError          no run folder matches an id
├── RunFolderError            a run folder is not readable
├── CheckpointError           a state can't be saved so that it can be loaded again
├── UnportableResultError     a value that JSON and files cannot represent
├── InsufficientMemoryError   the smallest unit of work does not fit in memory
└── RunFailedError            raised by `RunResult.raise_for_error()`

SoftTimeout (a BaseException) is raised inside an experiment when its time is nearly up.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class Error(Exception):
    """Base of every exception that this package raises on purpose.

    Example:
        ```python
        from ml_experiments import Error, run_experiment

        try:
            run_experiment("no_such_module.Train")
        except Error as e:
            print(type(e).__name__)  # ExperimentPathError
        ```
    """


class ConfigError(Error):
    """Raised when a config file, an override or a config field is not valid.

    Example:
        ```python
        from ml_experiments import ConfigError, run_experiment

        def train(lr=0.1, steps=3):
            return lr * steps

        if __name__ == "__main__":
            try:
                run_experiment(train, {"lr": 0.2, "step": 4})
            except ConfigError as e:
                print(e.problems)
        ```

    Attributes:
        problems: One message per problem; all of them, not just the first.
        unknown_fields: What was given for a config and is none of its fields.
    """

    def __init__(
        self, message: str, problems: tuple[str, ...] = (), unknown_fields: tuple[str, ...] = ()
    ) -> None:
        super().__init__("\n".join([message, *(f"  {p}" for p in problems)]))
        self.problems = problems
        self.unknown_fields = unknown_fields


class ExperimentPathError(Error):
    """Raised when a class path does not lead to an experiment.

    Attributes:
        missing_module: The module that could not be imported, when that was the cause.
    """

    def __init__(self, message: str, missing_module: str | None = None) -> None:
        super().__init__(message)
        self.missing_module = missing_module


class GpuTypeError(Error):
    """Raised when a GPU type, a count or a fallback list is not valid."""


class PreflightError(Error):
    """Raised when a run could not work where it would be sent; nothing was started."""


class BackendError(Error):
    """Raised when the place where runs execute refused or failed.

    Example:
        ```python
        from ml_experiments import BackendError, run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            try:
                run_experiment(square, backend="modl")
            except BackendError as e:
                print(str(e).partition(";")[0])  # 'modl' is not a backend (did you mean 'modal'?)
        ```
    """


class AuthError(BackendError):
    """Raised when credentials are missing or were rejected."""


class UnknownPriceError(BackendError):
    """Raised when no price is known for a GPU type."""


class RunNotCollectedError(BackendError):
    """Raised when a run was handed over, but its outcome could not be brought here; it goes on."""


class BudgetError(Error):
    """Raised when a run costs more than may be spent, or that isn't known; nothing was started.

    Example:
        ```python
        from ml_experiments import BudgetError, ModalBackend, run_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with ModalBackend() as backend:
                try:
                    run_experiment(square, backend=backend, gpu="b200:8", max_cost=0.01)
                except BudgetError as e:
                    print(str(e).partition(",")[0])  # the cap of $0.01 is too low
        ```
    """


class CacheError(Error):
    """Raised when a cache pattern, a cache folder or a download is not usable."""


class RunNotFoundError(Error):
    """Raised when no run folder, or more than one, matches an id."""


class RunFolderError(Error):
    """Raised when a run folder is not readable."""


class RunExistsError(RunFolderError):
    """Raised when a run folder can't be made because there is one of this id."""


class SupersededError(RunFolderError):
    """Another attempt at the run has begun; this one writes nothing more."""


class UnportableResultError(Error):
    """Raised when a value cannot be represented as JSON and files.

    Attributes:
        problems: One message per value, each naming its path in the results.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class CheckpointError(Error):
    """Raised when a state can't be saved so that it can be loaded again; nothing has changed."""


class InsufficientMemoryError(Error):
    """Raised when the smallest unit of work does not fit in memory."""


class SoftTimeout(BaseException):
    """Raised inside an experiment shortly before its timeout ends it.

    It is not an `Exception`, so that a retry loop around a training step cannot swallow it.
    An experiment may catch it, save, and return partial results: the run then ends with the
    error kind `timeout` and keeps them.

    Example:
        ```python
        import time

        from ml_experiments import SoftTimeout, run_experiment

        def train():
            done = 0
            try:
                while True:
                    time.sleep(0.1)
                    done += 1
            except SoftTimeout:
                return {"saved": done > 0}

        if __name__ == "__main__":
            result = run_experiment(train, timeout_s=2)
            print(result.error.kind, result.results)  # timeout {'saved': True}
        ```
    """


_SHORT = 3


def suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the known word closest to `word`, or an empty text."""
    by_folded = {name.casefold(): name for name in known}
    if len(word) <= _SHORT:  # a cpu is no gpu
        by_folded = {n: name for n, name in by_folded.items() if n[:1] == word[:1].casefold()}
    closest = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f" (did you mean {by_folded[closest[0]]!r}?)" if closest else ""
