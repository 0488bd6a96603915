"""Slurm's commands: what is in its queue, what became of a job, and signals to one."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from ml_experiments.errors import AuthError, BackendError, GpuTypeError, suggest
from ml_experiments.settings import slurm_configuration

# commands wait for a minute where the configuration is missing, and sbatch for ten seconds where
# the controller does not answer
_LIMIT_S = 20.0
_GPU = re.compile(r"(?P<type>[A-Za-z][\w.+-]*)?(?::?(?P<count>\d+))?")


@dataclass(frozen=True)
class GpuRequest:
    """GPUs of one node.

    Attributes:
        type: The name that the cluster has for them; None for any.
        count: How many.
    """

    type: str | None
    count: int

    @property
    def gres(self) -> str:
        """What sbatch takes, such as `gpu:a100:2`."""
        return ":".join(filter(None, ("gpu", self.type, str(self.count))))


def parse_gpu(given: str) -> GpuRequest:
    """Return the GPUs that `a100:2`, `a100`, `gpu:2` or `2` stands for.

    Raises:
        GpuTypeError: If it is none of these.
    """
    match = _GPU.fullmatch(given.strip())
    if match is None or not given.strip() or match["count"] == "0":
        raise GpuTypeError(
            f"{given!r} is not a GPU type of a Slurm cluster; write one of its names with a "
            "number, as in a100:2, or gpu:2 for any"
        )
    kind = match["type"]
    return GpuRequest(None if kind == "gpu" else kind, int(match["count"] or 1))


def require_slurm() -> None:
    """Make sure that Slurm's commands are here.

    Raises:
        BackendError: If they aren't, or have no configuration.
    """
    missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if missing:
        raise BackendError(
            f"Slurm's commands are not on this machine (no {', '.join(missing)}); run this on a "
            "login node of the cluster"
        )
    file = slurm_configuration()
    if file is not None and not Path(file).is_file():  # each command would wait a minute for it
        raise BackendError(f"SLURM_CONF is {file!r}, which is not a file")


def check_gpus(request: GpuRequest) -> None:
    """Make sure that a node of the cluster has GPUs of a type.

    Raises:
        GpuTypeError: If none has.
        BackendError: If Slurm does not answer.
    """
    types: dict[str, int] = {}
    for gres in call("sinfo", "--noheader", "--format=%G").replace("\n", ",").split(","):
        name, *rest = re.sub(r"\(.*", "", gres.strip()).split(":")
        if name == "gpu":
            kind = rest[0] if rest and not rest[0].isdigit() else "gpu"
            count = int(rest[-1]) if rest and rest[-1].isdigit() else 1
            types[kind] = max(count, types.get(kind, 0))
    known = ", ".join(f"{kind}:{count}" for kind, count in sorted(types.items()))
    if not types:
        raise GpuTypeError(f"gpu={request.gres!r}: no node of the cluster has GPUs")
    if request.type is not None and request.type not in types and "gpu" not in types:
        raise GpuTypeError(
            f"{request.type!r} is not a GPU type of the cluster{suggest(request.type, types)}; "
            f"it has {known}"
        )
    most = types.get(request.type or "", max(types.values()))
    if request.count > most:
        raise GpuTypeError(f"{request.gres} asks for more GPUs than a node has; there is {known}")


class Queue:
    """The jobs that Slurm has not done with, asked for once for all that want to know.

    Args:
        every_s: How old the answer may be.
    """

    def __init__(self, every_s: float = 0.0) -> None:
        self._every_s = every_s
        self._lock = threading.Lock()
        self._asked_at = float("-inf")
        self._states: dict[str, str] | None = None

    def states(self) -> dict[str, str] | None:
        """Return the state of each job of this user; None if Slurm doesn't answer."""
        with self._lock:
            if time.monotonic() - self._asked_at >= self._every_s:
                try:
                    lines = call("squeue", "--me", "--noheader", "--format=%i %T").splitlines()
                    self._states = {line.split()[0]: line.split()[1] for line in lines}
                except BackendError:
                    self._states = None
                self._asked_at = time.monotonic()
            return self._states

    def expire(self) -> None:
        """Ask again the next time, for a job has been submitted since."""
        with self._lock:
            self._asked_at = float("-inf")

    def has(self, job: str) -> bool | None:
        """Return whether Slurm has not done with a job; None if it doesn't answer."""
        states = self.states()
        return None if states is None else job in states

    def facts(self, job: str) -> dict[str, str]:
        """Return what Slurm knows of a job, such as `JobState`; nothing if it has forgotten it."""
        return facts_of(job)

    def cancel(self, job: str, *, by_interrupt: bool) -> None:
        """End a job, or interrupt its process.

        Raises:
            BackendError: If Slurm refuses.
        """
        call("scancel", *(("--batch", "--signal=INT") if by_interrupt else ()), job)


class LocalQueue(Queue):
    """The same for jobs that are processes of this machine, by submitit's local executor."""

    @override
    def has(self, job: str) -> bool | None:
        import psutil

        try:
            return psutil.Process(int(job)).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    @override
    def facts(self, job: str) -> dict[str, str]:
        return {}

    @override
    def cancel(self, job: str, *, by_interrupt: bool) -> None:
        """Do nothing: such a job starts at once, and reads the request from the run folder."""


def facts_of(job: str) -> dict[str, str]:
    """Return what Slurm knows of a job; nothing once it has forgotten it."""
    try:
        found = call("scontrol", "show", "job", job, "--oneliner")
    except BackendError:
        return {}
    return dict(word.split("=", 1) for word in found.split() if "=" in word)


def call(*command: str) -> str:
    """Return what a command of Slurm's prints.

    Raises:
        BackendError: If it fails.
        AuthError: If it is not allowed to this user.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_LIMIT_S, check=False
        )
    except FileNotFoundError as e:
        require_slurm()
        raise BackendError(f"Slurm's command {command[0]} is not on this machine") from e
    except (OSError, subprocess.TimeoutExpired) as e:
        raise BackendError(f"Slurm does not answer: {command[0]}: {e}") from e
    if done.returncode != 0:
        message = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        kind = AuthError if "permission denied" in message.lower() else BackendError
        raise kind(f"Slurm's {command[0]} failed: {message}")
    return done.stdout
