"""What a backend is: it takes a run spec and an open run folder, and sees the run to its end."""

from __future__ import annotations

import datetime
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from ml_experiments.backends.pools import Pool
from ml_experiments.cache.layout import find_layout, this_machine
from ml_experiments.cache.scan.repositories import read_ref
from ml_experiments.errors import BackendError, ConfigError
from ml_experiments.execution.observer import Observer
from ml_experiments.execution.worker.messages import Description
from ml_experiments.execution.worker.pool import TemplatePool
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.environment import hash_of_packages
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import PreparedRun, RunSpec

# of `Backend.packages`: a hash of all versions, which the manifest has
INSTALLED = "installed"
_MAX_WAIT_S = 1e9


class RunHandle(ABC):
    """A run that was handed to a backend.

    Example:
        ```python
        from ml_experiments import LocalBackend, submit_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with LocalBackend() as backend:
                handle = submit_experiment(square, {"n": 3}, backend=backend)
                print(handle.result(timeout_s=60).results)  # 9
                print(handle.done(), handle.status)  # True success
        ```

    Attributes:
        future: What the backend will know of the run; None if it has ended already.
    """

    future: Future[RunResult] | None = None

    def __init__(self, spec: RunSpec, folder: RunFolder) -> None:
        self.spec = spec
        self.folder = folder

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self.spec.run_id

    def when_ended(self, act: Callable[[], object]) -> None:
        """Call a function once the run has ended, in whatever way."""
        if self.future is None:
            act()
        else:
            self.future.add_done_callback(lambda _: act())

    def result(self, timeout_s: float | None = None) -> RunResult:
        """Wait for the run to end and return its result.

        Raises:
            TimeoutError: If it hasn't ended after so many seconds; it goes on.
        """
        assert self.future is not None
        # no clock counts further
        return self.future.result(None if timeout_s is None else min(timeout_s, _MAX_WAIT_S))

    def done(self) -> bool:
        """Return whether the run has ended, in whatever way."""
        return self.future is None or self.future.done()

    @property
    def status(self) -> RunStatus:
        """Where the run stands now, as its folder says."""
        return self.folder.outcome().status

    def logs(self) -> str:
        """Return what the run has printed so far; on Modal, as far as it has arrived here."""
        try:
            return self.folder.log_file.read_text("utf-8", "replace")
        except FileNotFoundError:
            return ""

    @abstractmethod
    def cancel(self, *, at_once: bool = False) -> None:
        """End the run: by an interrupt that the experiment sees, or at once."""


class FinishedRunHandle(RunHandle):
    """A run that has ended already."""

    def __init__(self, spec: RunSpec, folder: RunFolder, result: RunResult) -> None:
        super().__init__(spec, folder)
        self._result = result

    def result(self, timeout_s: float | None = None) -> RunResult:  # noqa: ARG002 - nothing to wait for
        """Return the result."""
        return self._result

    def cancel(self, *, at_once: bool = False) -> None:
        """Do nothing: the run has ended."""


class Backend(ABC):
    """A place where runs execute. Use it in a `with` block, which waits for its runs."""

    name: ClassVar[str]
    # whether its runs go on when the process that submitted them ends
    outlives_client: ClassVar[bool] = False

    def __init__(self) -> None:
        self.templates = TemplatePool()
        self._open_runs: set[RunHandle] = set()

    def describe(
        self,
        experiment: str,
        import_paths: tuple[str, ...],
        config: Any,
        seed: int,
        *,
        is_recorded: bool = False,
    ) -> tuple[Description, Any]:
        """Import an experiment and validate its config, in a process of its own.

        Returns:
            What is known of it, and the template, for `PreparedRun.template`.

        Raises:
            Error: If the experiment can't be imported, or the config is not valid.
        """
        [described], template = self.templates.describe(
            experiment, import_paths, [config], seed, is_recorded=is_recorded
        )
        try:
            if isinstance(described, ConfigError):
                raise described
            self.check_description(described)
        except BaseException:
            self.templates.release(template)
            raise
        return described, template

    def describe_each(
        self, experiment: str, import_paths: tuple[str, ...], configs: Sequence[Any], seed: int
    ) -> Iterator[Description | ConfigError]:
        """Yield what is known of an experiment with each config, or why that is not valid.

        Raises:
            Error: If the experiment can't be imported.
        """
        found, template = self.templates.describe(experiment, import_paths, configs, seed)
        self.templates.release(template)
        for described in found:
            if isinstance(described, ConfigError):
                yield described
                continue
            try:
                self.check_description(described)
            except ConfigError as e:
                yield e
            else:
                yield described

    def check_description(self, described: Description) -> None:  # noqa: B027
        """Refuse an experiment and config that are valid, but not for this backend.

        Raises:
            ConfigError: If they are not.
        """

    def prepare(self, run: PreparedRun) -> PreparedRun:
        """Find what would fail there, before anything is started.

        Returns:
            The run as it will be: the backend's defaults are filled in.

        Raises:
            Error: If the run could not work.
        """
        return run

    def packages(self, run: PreparedRun) -> dict[str, str]:  # noqa: ARG002 - of this machine
        """Return the versions of the packages that a run is going to have, or what stands for them.

        Args:
            run: The run, as `prepare` returned it.
        """
        return {"python": platform.python_version(), INSTALLED: hash_of_packages()}

    def model_revision(self, repo: str, ref: str) -> str | None:
        """Return the revision in the cache that a run is going to load; None if none is there.

        Args:
            repo: The folder of a repository, such as `models--org--name`.
            ref: A branch or tag.
        """
        hub = find_layout(this_machine()).hub
        return None if hub is None else read_ref(hub / repo / "refs" / ref)[0]

    def forget_fingerprint(self, prepared: PreparedRun, folder: RunFolder) -> None:
        """Forget what a run depends on if its source has changed since it was prepared."""
        if prepared.source.have_changed():
            folder.forget_fingerprint(Redactor(prepared.secrets))

    def limit_cost(self, run: PreparedRun, max_usd: float) -> PreparedRun:  # noqa: ARG002
        """Change a prepared run so that it can't cost more.

        Raises:
            BackendError: If its runs cost nothing, or it isn't known what they cost.
        """
        raise BackendError(f"a run on the {self.name} backend costs nothing that could be limited")

    def end_pool(self, pool: Pool) -> None:  # noqa: B027
        """End the idle container that runs of a sweep have shared; a later run starts another."""

    def prefetch(self, model: str, observer: Observer, spec: RunSpec) -> None:
        """Download a model of the Hub, `org/name[@revision]`, to where the run will look for it.

        Raises:
            CacheError: If it can't be downloaded.
        """
        from ml_experiments.cache.pull.pulling import pull  # brings an HTTP client along

        observer.notice(spec, f"downloading {model}")
        name, _, revision = model.partition("@")
        pull(name, cache_dir=this_machine(), revision=revision or None)

    @abstractmethod
    def submit(self, prepared: PreparedRun, folder: RunFolder, observer: Observer) -> RunHandle:
        """Hand over a run; returns at once."""

    def attach(self, folder: RunFolder, observer: Observer) -> RunHandle:  # noqa: ARG002
        """Take up a run again that has outlived the client that submitted it.

        Raises:
            BackendError: If its runs end with their client.
        """
        raise BackendError(f"runs on the {self.name} backend end with the client that started them")

    def bring_here(self, run_id: str, runs_dir: Path) -> bool:  # noqa: ARG002
        """Bring the folder of a run here that another machine has started; return whether it is.

        Args:
            run_id: The run.
            runs_dir: Where its folder goes.
        """
        return False

    def recover(self, folder: RunFolder, observer: Observer) -> None:  # noqa: B027
        """Bring a result here that is where the run executed, though its client never got it.

        Args:
            folder: The run folder.
            observer: Receives notices.
        """

    def take_over(self, folder: RunFolder) -> None:  # noqa: B027
        """Bring what a run has left on this machine to where this backend executes it.

        Raises:
            BackendError: If it can't be brought there.
        """

    def newest_checkpoint(self, folder: RunFolder) -> datetime.datetime | None:
        """Return when the newest file among a run's checkpoints was written; None without any."""
        latest = max(self.checkpoint_files(folder).values(), default=None)
        return None if latest is None else datetime.datetime.fromtimestamp(latest, datetime.UTC)

    def checkpoint_files(self, folder: RunFolder) -> dict[str, float]:
        """Return the files among a run's checkpoints, with the Unix time of each.

        They are named relative to the folder of the checkpoints.
        """
        files = (path for path in folder.checkpoint_dir.rglob("*") if path.is_file())
        return {
            file.relative_to(folder.checkpoint_dir).as_posix(): file.stat().st_mtime
            for file in files
        }

    @abstractmethod
    def close(self) -> None:
        """Wait for the runs that were submitted, and release everything."""
        self.templates.close()

    def wait_for_runs(self) -> None:
        """Wait for the runs that were submitted, those that are to be tried again included.

        Raises:
            KeyboardInterrupt: After the runs were cancelled.
        """
        try:
            while futures := [
                handle.future
                for handle in tuple(self._open_runs)
                if handle.future is not None and not handle.future.done()
            ]:
                wait(futures)
        except BaseException:
            self.cancel_all()
            raise

    def cancel_all(self) -> None:
        """End the runs that were submitted; those that have not started never do."""
        for handle in tuple(self._open_runs):
            handle.cancel()

    def start(self, handle: RunHandle, future: Callable[[], Future[RunResult]]) -> RunHandle:
        """Start a run, which counts as open until it has ended."""
        self._open_runs.add(handle)  # first: an interrupt may come at any moment
        try:
            handle.future = future()
        except RuntimeError as e:
            if "start new thread" not in str(e):  # such as a backend that was closed
                raise
            handle.cancel()  # a thread that is there may take it up yet
            self._open_runs.discard(handle)
            message = f"{e}; raise the limit of processes (ulimit -u), or lower max_workers"
            error = RunError(ErrorKind.INFRASTRUCTURE, "BackendError", message)
            spec = handle.spec
            result = RunResult(spec.run_id, RunStatus.ERROR, spec.experiment, error=error)
            handle.folder.write_result(result, Redactor(()))
            raise BackendError(message) from e
        handle.when_ended(lambda: self._open_runs.discard(handle))
        return handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self.cancel_all()
            self.close()
        except BaseException:  # Ctrl-C while it waits
            self.cancel_all()
            self.close()
            raise
