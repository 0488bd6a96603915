"""The images that containers run: packages from the lock, documented environment, this package."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import modal

from ml_experiments.backends.modal.mounts import ENVIRONMENT
from ml_experiments.backends.modal.preflight.import_graph import OWN_PACKAGE
from ml_experiments.backends.modal.preflight.imports import CONTAINER_PYTHON
from ml_experiments.backends.modal.preflight.own_package import package_files
from ml_experiments.backends.modal.preflight.packages import LOCK_FILE, read_lock

# the CUDA version that the lock's torch is built for; a test compares the two
TOOLKIT_BASE = "nvidia/cuda:13.0.2-devel-ubuntu24.04"
# what this package needs wherever it runs; a test compares them with pyproject.toml
CORE_PACKAGES = (
    "aiohttp",
    "annotated-types",
    "click",
    "cloudpickle",
    "dacite",
    "grpclib",
    "httpx2",
    "huggingface-hub",
    "lazy-loader",
    "modal",
    "omegaconf",
    "packaging",
    "protobuf",
    "psutil",
    "pydantic",
    "pydantic-core",
    "pyyaml",
    "rich",
    "tenacity",
    "tqdm",
    "typing-extensions",
    "wrapt",
)
APT_PACKAGES = ("ffmpeg", "git")

_PYTHON = ".".join(map(str, CONTAINER_PYTHON))


def package_image(*, cuda_toolkit: bool = False, pip: Sequence[str] = ()) -> modal.Image:
    """Return the image with all packages, and without anything of the user's.

    Args:
        cuda_toolkit: Start from NVIDIA's development image, with nvcc, for those who compile
            kernels. PyTorch's wheels bring all that running needs.
        pip: Packages to add; the locked ones keep their versions, or the build fails.
    """
    if cuda_toolkit:
        image = modal.Image.from_registry(TOOLKIT_BASE, add_python=_PYTHON).entrypoint([])
    else:
        image = modal.Image.debian_slim(python_version=_PYTHON)
    image = image.apt_install(*APT_PACKAGES)
    image = image.uv_pip_install(requirements=[str(LOCK_FILE)])
    if pip:
        # the lock once more, as a constraint on what the additions may change
        image = image.uv_pip_install(*pip, requirements=[str(LOCK_FILE)])
    return image.env(ENVIRONMENT)


def cache_image() -> modal.Image:
    """Return a small image for the work on the cache, which needs neither GPU nor PyTorch."""
    lock = read_lock()
    packages = [f"{name}=={lock[name]}" for name in CORE_PACKAGES]
    image = modal.Image.debian_slim(python_version=_PYTHON).uv_pip_install(*packages)
    return image.env(ENVIRONMENT)


def with_this_package(image: modal.Image, *roots: str) -> modal.Image:
    """Return an image that holds this package too, and to which steps can still be added.

    Args:
        image: The image.
        *roots: The modules that run in it, as names below this package; with them goes what they
            import.
    """

    @functools.cache
    def wanted() -> set[Path]:
        files = package_files(*roots)
        return {*files, *(folder for file in files for folder in file.parents)}

    # a container that executes this module again never asks
    return image.add_local_python_source(
        OWN_PACKAGE, copy=True, ignore=lambda path: path not in wanted()
    )
