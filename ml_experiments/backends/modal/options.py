"""The options of the Modal backend; imports nothing of Modal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from annotated_types import Gt, Lt, MinLen
from typing_extensions import Doc, TypedDict


class ModalOptions(TypedDict, total=False):
    """What can be asked of the Modal backend: `ModalBackend(cpu=4, pip=["timm"])`."""

    secrets: Annotated[
        Sequence[Annotated[str, MinLen(1)]],
        Doc("Modal secret to attach besides the known ones that exist."),
    ]
    pip: Annotated[Sequence[Annotated[str, MinLen(1)]], Doc("Package to add to the Modal image.")]
    requirements: Annotated[str | Path | None, Doc("File with packages to add to the Modal image.")]
    cpu: Annotated[float | None, Gt(0), Lt(math.inf), Doc("CPU cores to reserve on Modal.")]
    memory_gib: Annotated[
        float | None, Gt(0), Lt(math.inf), Doc("Memory to reserve on Modal, in GiB.")
    ]
    cuda_toolkit: Annotated[bool, Doc("Modal image with nvcc, to compile kernels.")]
