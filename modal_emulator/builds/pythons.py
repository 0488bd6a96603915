"""The interpreters of images, and the modal package for them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from modal_emulator.containers.interpreter import INTERPRETER
from modal_emulator.storage.ids import new_id

_NAME = re.compile(r"[\w.-]+")
HOST_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def find_uv() -> str | None:
    """Return the path of uv: next to this Python, or on the PATH."""
    path = os.pathsep.join([str(INTERPRETER.parent), os.environ.get("PATH", os.defpath)])
    return shutil.which("uv", path=path)


def find_python(version: str, uv: str) -> str | None:
    """Return an interpreter of a minor version such as 3.12; uv downloads one if it can."""
    if version == HOST_VERSION:
        return str(Path(sys.base_prefix, "bin", f"python{version}"))
    for candidate in _candidates(version, uv):
        if _version_of(candidate) == version:
            return candidate
    environment = {**os.environ, "UV_HTTP_RETRIES": "0"}
    done = subprocess.run(
        [uv, "python", "install", version], env=environment, capture_output=True, text=True
    )
    return _found_by_uv(version, uv) if done.returncode == 0 else None


def _candidates(version: str, uv: str) -> Iterator[str]:
    for found in (_found_by_uv(version, uv), shutil.which(f"python{version}")):
        if found:
            yield found
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    yield from map(str, sorted(versions.glob(f"{version}.*/bin/python"), reverse=True))


def _found_by_uv(version: str, uv: str) -> str | None:
    command = [uv, "python", "find", "--system", "--no-python-downloads", version]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


def _version_of(python: str) -> str:
    print_version = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([python, "-I", "-S", "-c", print_version], capture_output=True, text=True)
    return done.stdout.strip()


def client_packages(folder: Path, python: str, version: str, uv: str) -> Path:
    """Return a folder with the modal package of this environment, for another interpreter.

    Modal brings its client to containers in the same way, beside the packages of the image.

    Raises:
        OSError: If it can't be installed.
    """
    modal = importlib.metadata.version("modal")
    names = sorted(_closure("modal"))
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in names]
    digest = hashlib.sha256("\n".join([*pins, platform.platform()]).encode()).hexdigest()[:12]
    target = folder / f"modal-{modal}-python-{version}-{digest}"
    if target.is_dir():
        return target
    new = folder / new_id("installing")
    new.mkdir(parents=True)
    if version == HOST_VERSION:
        for name in names:
            _link_files(name, new)
    else:
        command = [uv, "pip", "install", "--quiet", "--python", python, "--target", str(new)]
        done = subprocess.run([*command, f"modal=={modal}"], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"modal can't be installed for Python {version}: {done.stderr}")
    try:
        new.rename(target)
    except OSError:  # another server was faster
        shutil.rmtree(new)
    return target


def _closure(name: str) -> set[str]:
    """Return a distribution and all that it requires, as far as they are installed."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        try:
            requires = importlib.metadata.requires(current) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(current)
        # those with other markers are installed where they apply
        waiting += [_NAME.findall(each)[0] for each in requires if "extra ==" not in each]
    return found


def _link_files(name: str, target: Path) -> None:
    for file in importlib.metadata.files(name) or []:
        source = Path(str(file.locate()))
        if ".." in file.parts or not source.is_file():
            continue  # a script, which is outside of the packages
        destination = target / file
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, destination)
        except FileExistsError:
            continue
        except OSError:  # on another file system
            shutil.copy2(source, destination)
