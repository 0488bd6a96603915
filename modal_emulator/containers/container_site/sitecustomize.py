"""Runs at the start of every Python process of a container, and removes editable installs.

The `.pth` files of editable installs add the user's working folders to the path, so that modules
could be imported that were never uploaded and would be missing on Modal. Python has read these
files before it imports this module, which therefore removes again what they have added: folders
and import hooks. Packages that are installed otherwise stay.
"""

from __future__ import annotations

import os
import site
import sys

_SIOCGIFADDR = 0x8915


def _installed_folders() -> list[str]:
    named = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    standard_library = os.path.dirname(os.__file__)  # noqa: PTH120 - pathlib would slow the start
    folders = [*named, *site.getsitepackages(), standard_library]
    return [os.path.realpath(folder) for folder in folders]


def _is_below(path: str, folders: list[str]) -> bool:
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(folder + os.sep) for folder in folders)


def _is_editable_hook(hook: object) -> bool:
    owners = (hook, type(hook), getattr(hook, "__self__", None))
    return any(getattr(each, "__module__", "").startswith("__editable__") for each in owners)


def _remove_editable_installs() -> None:
    folders = _installed_folders()
    sys.path[:] = [
        entry
        for entry in sys.path
        if not entry.startswith("__editable__")
        and (not entry or entry.endswith(".zip") or _is_below(entry, folders))
    ]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not _is_editable_hook(finder)]
    sys.path_hooks[:] = [hook for hook in sys.path_hooks if not _is_editable_hook(hook)]


def _give_loopback_as_eth0() -> None:
    """Answer with the loopback address when Modal's entrypoint asks for that of eth0.

    It connects by that address to the server that a function of `modal.web_server` has started.
    """
    import fcntl
    import struct
    from typing import Any

    ask = fcntl.ioctl

    def ioctl(file: Any, request: int, argument: Any = 0, *rest: Any) -> Any:
        if request == _SIOCGIFADDR and isinstance(argument, bytes) and argument[:5] == b"eth0\0":
            return struct.pack("20s4B232x", argument, 127, 0, 0, 1)
        return ask(file, request, argument, *rest)

    fcntl.ioctl = ioctl


def _give_address_in_cluster(address: str) -> None:
    """Answer with an address of the loopback interface when modal asks for that in its network."""
    import socket
    from typing import Any

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        return resolve(address if host == "i6pn.modal.local" else host, *rest, **named)

    socket.getaddrinfo = getaddrinfo


_remove_editable_installs()
if client := os.environ.get("MODAL_EMULATOR_CLIENT"):
    sys.path.append(client)
if os.environ.get("MODAL_EMULATOR_LOOPBACK") == "1":
    _give_loopback_as_eth0()
if address := os.environ.get("MODAL_EMULATOR_I6PN"):
    _give_address_in_cluster(address)
