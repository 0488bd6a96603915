"""Modal secrets that runs get: the known ones when they exist, others when asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import modal

from ml_experiments.backends.modal.errors import platform_errors
from ml_experiments.backends.modal.mounts import ENVIRONMENT
from ml_experiments.errors import BackendError

# name -> the variables that it holds
KNOWN_SECRETS = {
    "huggingface-secret": ("HF_TOKEN",),
    "wandb-secret": ("WANDB_API_KEY",),
    "aws-secret": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
}

# what an image, Modal or the system sets; all else in a container comes from secrets
_NOT_FROM_SECRETS = re.compile(
    r"PATH|HOME|PWD|OLDPWD|SHLVL|SHELL|TERM|TZ|LANG|HOSTNAME|USER|LOGNAME|_|GPG_KEY"
    r"|DEBIAN_FRONTEND|SOURCE_DATE_EPOCH"
    r"|(LC|LD|PYTHON|MODAL|NVIDIA|NV|CUDA|SSL_CERT|UV|PIP|OMP|KMP|MKL|OPENBLAS|TORCH|NCCL|GRPC)_?.*"
)


@dataclass(frozen=True)
class FoundSecrets:
    """The secrets to attach, and the names of known ones that do not exist."""

    secrets: tuple[modal.Secret, ...]
    names: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What to say of known secrets that do not exist, in one sentence."""
        if not self.absent:
            return ()
        names = ", ".join(f"{name} ({', '.join(KNOWN_SECRETS[name])})" for name in self.absent)
        return (
            f"not attached, for they do not exist: {names}; where one is needed, create it, as "
            f"with: {creation_command(self.absent[0])}",
        )


def creation_command(name: str) -> str:
    """Return the command that creates a secret."""
    variables = KNOWN_SECRETS.get(name, ("NAME",))
    return f"modal secret create {name} {' '.join(f'{v}=...' for v in variables)}"


def find_secrets(requested: Iterable[str]) -> FoundSecrets:
    """Look up the requested secrets and the known ones.

    Raises:
        BackendError: If a requested one does not exist.
    """
    requested = tuple(dict.fromkeys(requested))
    names = tuple(dict.fromkeys((*requested, *KNOWN_SECRETS)))
    # all at once; and not in a thread with an event loop, as a notebook's: modal warns of that
    with ThreadPoolExecutor(len(names)) as threads:
        looked_up = dict(zip(names, threads.map(_look_up, names), strict=True))
    for name in requested:
        if looked_up[name] is None:
            raise BackendError(
                f"there is no Modal secret {name!r}; create it with: "
                f"{creation_command(name)} (`modal secret list` shows those that exist)"
            )
    found = {name: secret for name, secret in looked_up.items() if secret is not None}
    absent = tuple(name for name in names if name not in found)
    return FoundSecrets(tuple(found.values()), tuple(found), absent)


def _look_up(name: str) -> modal.Secret | None:
    secret = modal.Secret.from_name(name)
    with platform_errors(f"look up the secret {name!r}"):
        try:
            secret.hydrate()
        except modal.exception.NotFoundError:
            return None
    return secret


def attached_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values in a container's environment that came, or may have come, from secrets.

    Modal doesn't tell which variables a secret has set.
    """
    return tuple(
        value
        for name, value in environment.items()
        if value and name not in ENVIRONMENT and not _NOT_FROM_SECRETS.fullmatch(name)
    )
