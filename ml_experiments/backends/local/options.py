"""The options of the local backend."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from typing_extensions import Doc, TypedDict


class LocalOptions(TypedDict, total=False):
    """What can be asked of the local backend: `LocalBackend(max_workers=2)`."""

    max_workers: Annotated[
        int | None,
        Ge(1),
        Doc("How many runs at a time; by default one for each GPU, or one without any."),
    ]
