"""Where a run comes from and where it executes: its manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ml_experiments.runs.provenance.fingerprint import Fingerprint
from ml_experiments.runs.provenance.processes import ProcessId
from ml_experiments.runs.records import to_record
from ml_experiments.runs.result import Attempt, RunResult


@dataclass(frozen=True)
class ModalPlace:
    """The container of a run on Modal.

    Attributes:
        gpu: The request to Modal: one GPU, or the alternatives.
        cpu_cores: Cores that are reserved, and the limit.
        memory_mib: Memory that is reserved, and the limit.
        nodes: How many such containers the run has at once, where that is more than one.
        worst_case_usd: The most that one attempt can cost, in US dollars.
        app_url: The page of the app on Modal's dashboard; None until the run is handed over to it.
        function_call_id: The call; None until Modal has taken it.
        started_at: Unix time at which the container reported the start.
    """

    gpu: str | list[str] | None = None
    cpu_cores: tuple[float, float] | None = None
    memory_mib: tuple[int, int] | None = None
    worst_case_usd: float | None = None
    app_url: str | None = None
    function_call_id: str | None = None
    started_at: float | None = None
    nodes: int | None = None

    @property
    def app_id(self) -> str | None:
        """The app, whose page ends with its id; None until the run is handed over to it."""
        return self.app_url.rpartition("/")[2] if self.app_url else None


@dataclass(frozen=True)
class Manifest:
    """What is recorded of a run besides its spec and its result.

    Attributes:
        code: The git commit and the uncommitted changes; see `provenance.git`.
        attempt: Which attempt at the run this is.
        began_at: When this attempt was submitted, in ISO 8601.
        earlier_attempts: The attempts before it.
        client: The process that submitted the run.
        process: The process that executes it.
        environment: Machine, Python, packages and GPUs; see `provenance.environment`.
        modal: The container, for a run on Modal.
        job: The job of a scheduler that the run was handed over to.
        cached_models: The revisions of cached models that the run loaded; None for no record.
        fingerprint: What the result depends on; None where that is not known, as after the source
            was changed between two attempts.
        submission: Changes with each submission of the run to Modal, but not when Modal reruns it.
        controller: The call on Modal that makes the attempts at the run; None where a client does.
    """

    run_id: str = ""
    seed: int | None = None
    code: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    began_at: str | None = None
    earlier_attempts: tuple[Attempt, ...] = ()
    client: ProcessId | None = None
    process: ProcessId | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    modal: ModalPlace | None = None
    cached_models: tuple[dict[str, Any], ...] | None = None
    fingerprint: Fingerprint | None = None
    submission: str | None = None
    job: str | None = None
    controller: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON; what is unknown is left out."""
        return _without_none(to_record(self))

    @property
    def has_started(self) -> bool:
        """Whether the run has started to execute."""
        return self.process is not None or (
            self.modal is not None and self.modal.started_at is not None
        )

    def attempts(self, result: RunResult) -> tuple[Attempt, ...]:
        """Return all attempts, the last one with its result."""
        own = Attempt(
            number=len(self.earlier_attempts) + 1,
            status=result.status,
            place=self._place(),
            began_at=self.began_at or "",
            seconds=result.timings.get("total_s"),
            error=result.error,
            cost_usd=result.cost.get("estimate_usd"),
            at_most_usd=result.cost.get("at_most_usd"),
            container_s=result.timings.get("container_s"),
            gpu=self._gpu(),
            submission=self.attempt,
        )
        return (*self.earlier_attempts, own)

    def _gpu(self) -> str | None:
        names = [str(gpu.get("name")) for gpu in self.environment.get("gpus", ())]
        if not names and self.modal is not None and self.modal.gpu is not None:
            return self._modal_gpu()
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{n} x {name}" if n > 1 else name for name, n in counts.items()) or None

    def _modal_gpu(self) -> str:
        gpu = None if self.modal is None else self.modal.gpu
        return "" if gpu is None else gpu if isinstance(gpu, str) else " or ".join(gpu)

    def _place(self) -> str:
        if self.modal is not None:
            count = f"{self.modal.nodes} x" if self.modal.nodes else None
            names = (count, self._modal_gpu(), self.modal.function_call_id)
            return " ".join(["Modal", *filter(None, names)])
        process = self.process or self.client
        return process.hostname if process is not None else ""

    @property
    def call_id(self) -> str | None:
        """The call on Modal by which the run is followed; None until Modal has taken it."""
        return self.controller or (None if self.modal is None else self.modal.function_call_id)

    @property
    def is_on_modal(self) -> bool:
        """Whether the run may be on Modal, where it continues without its client."""
        is_handed_over = self.modal is not None and self.modal.app_url is not None
        return is_handed_over or self.call_id is not None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the run was handed over to Modal or to a scheduler."""
        return self.is_on_modal or self.job is not None


def _without_none(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if key in ("client", "process", "modal") else value
        for key, value in record.items()
        if value is not None
    }
