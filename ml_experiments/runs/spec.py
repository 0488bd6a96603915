"""One run as data: what was asked for."""

from __future__ import annotations

import datetime
import os
import re
from dataclasses import dataclass, field
from typing import Any

from ml_experiments.errors import ConfigError
from ml_experiments.runs.provenance.fingerprint import Fingerprint, SourceFiles
from ml_experiments.runs.records import to_record

_MAX_ID_LENGTH = 48  # the name of an app on Modal has up to 64
_RUN_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_MAX_ID_LENGTH - 1}}}")
_RESERVED_IDS = ("last", "sweeps")
MAX_GRACE_S = 30.0
MIN_GRACE_S = 1.0


@dataclass(frozen=True)
class RunSpec:
    """What is asked for: everything that the place where a run executes needs to know.

    Example:
        ```python
        from ml_experiments import LocalBackend, submit_experiment

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with LocalBackend() as backend:
                spec = submit_experiment(square, {"n": 3}, backend=backend, seed=1).spec
                print(spec.config, spec.seed, spec.backend)  # {'n': 3} 1 local
        ```

    Attributes:
        run_id: Unique, sorts by time of creation.
        experiment: Import path of the class or function, `pkg.module.Class`,
            `pkg.module:Class` or `path/to/file.py:Class`.
        config: The validated config, as JSON.
        seed: Seeds random, numpy and torch; always set, so that any run can be repeated.
        timeout_s: The run is ended after so many seconds; None means no limit.
        asked_timeout_s: The timeout that was asked for, where a cap has made it shorter.
        max_cost: The most that all attempts may cost together, in US dollars; None for no cap.
        import_paths: Folders that the experiment's modules are imported from.
        retries: How often the run is tried again after what can pass by itself.
        escalate: Where it goes on after CUDA out of memory: GPU types, or `larger`.
        escalate_to: The GPU type on Modal that a run on this machine goes on with after out of
            memory.
        launch: What starts the processes that the run executes in: `torchrun` or `accelerate`;
            None for a single process.
        nproc_per_node: How many processes that are, on each machine.
        nodes: How many machines the run executes on at once.
        backend_options: What else was asked of the backend, with which it can be opened again.
    """

    run_id: str
    experiment: str
    config: dict[str, Any]
    seed: int
    created_at: str
    backend: str = "local"
    gpu: str | None = None
    timeout_s: float | None = None
    name: str | None = None
    tags: dict[str, str] = field(default_factory=dict)
    import_paths: tuple[str, ...] = ()
    retries: int = 0
    escalate: str | None = None
    escalate_to: str | None = None
    backend_options: dict[str, Any] = field(default_factory=dict)
    max_cost: float | None = None
    launch: str | None = None
    nproc_per_node: int | None = None
    nodes: int = 1
    asked_timeout_s: float | None = None

    @property
    def may_run_again(self) -> bool:
        """Whether its client may make another attempt after one that failed."""
        return self.retries > 0 or self.escalate is not None or self.escalate_to is not None

    @property
    def soft_timeout_s(self) -> float | None:
        """Seconds after which `SoftTimeout` is raised inside the experiment.

        What is left then, to save, is a tenth of the timeout: at most 30 s, and at least one
        second where that's no more than half.
        """
        if self.timeout_s is None:
            return None
        grace_s = max(self.timeout_s / 10, min(MIN_GRACE_S, self.timeout_s / 2))
        return self.timeout_s - min(grace_s, MAX_GRACE_S)

    def to_dict(self) -> dict[str, Any]:
        """Return the run spec as JSON."""
        return dict(to_record(self))


@dataclass(frozen=True)
class PreparedRun:
    """A run that passed preflight.

    Attributes:
        spec: What to run.
        secrets: Values that no record may hold.
        setup_key: Equal for runs that one set-up instance can serve; None where each run needs a
            process of its own.
        requirements: What the experiment's own `requirements` asks for.
        hub_models: The models on the Hub that its config names.
        template: The template process that checked it, and executes it on this machine.
        forecast: What it is going to cost, a `Forecast`; None where that is nothing.
        budget: What it shares with other runs, a `Budget`; None for a cap of its own.
        pool: The containers that it shares with other runs, a `Pool`; None for any.
        reservation: What is reserved for it in the ledger.
        plan: What its backend worked out in `Backend.prepare` and needs in `Backend.submit`.
        notify: The URL to which its end is posted; no record holds it.
        fingerprint: What its result depends on.
        source: The files that its source was read from.
        reuses: Whether the result of an earlier run, which depends on the same, is taken for it.
        takes_any_seed: Whether such a run may have had another seed.
        has_own_id: Whether its id was asked for, so that it runs once under it.
    """

    spec: RunSpec
    secrets: tuple[str, ...]
    setup_key: str | None = None
    requirements: tuple[str, ...] = ()
    hub_models: tuple[str, ...] = ()
    template: Any = None
    plan: Any = None
    forecast: Any = None
    budget: Any = None
    pool: Any = None
    reservation: Any = None
    notify: str | None = None
    fingerprint: Fingerprint | None = None
    source: SourceFiles = field(default_factory=SourceFiles)
    reuses: bool = False
    takes_any_seed: bool = False
    has_own_id: bool = False


def check_run_id(run_id: str) -> None:
    """Refuse what can't be the id of a run: it is the name of a folder, and of an app on Modal.

    Raises:
        ConfigError: If it isn't letters, digits, dots, dashes and underscores, or is reserved.
    """
    if _RUN_ID.fullmatch(run_id) is None:
        raise ConfigError(
            f"{run_id!r:.80} can't be the id of a run; an id has up to {_MAX_ID_LENGTH} letters, "
            "digits, dots, dashes and underscores, and begins with a letter or a digit"
        )
    if run_id in _RESERVED_IDS:
        raise ConfigError(
            f"{run_id!r} can't be the id of a run; the word stands for something else"
        )


def new_run_id(now: datetime.datetime | None = None) -> str:
    """Return an id such as `20261123-141502-417a9c3` (UTC, to the millisecond), unique."""
    moment = now or datetime.datetime.now(datetime.UTC)
    milliseconds = moment.microsecond // 1000
    return f"{moment:%Y%m%d-%H%M%S}-{milliseconds:03}{os.urandom(2).hex()}"
