"""Packages that share a namespace, such as `google`, against the image's lock."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from ml_experiments.backends.modal.preflight.imports import Import
from ml_experiments.backends.modal.preflight.packages import (
    MissingPackage,
    missing_packages,
    read_lock,
)

pytestmark = pytest.mark.slow

Install = Callable[..., None]
LOCK = {"acme-one": "1.0", "protobuf": "7.0"}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install packages, by their name and files, as pip leaves them."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, *files: str, content: str = "", record: bool = True) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        if record:
            (info / "RECORD").write_text("".join(f"{file},,\n" for file in files))
        else:
            tops = {file.partition("/")[0].removesuffix(".py") for file in files}
            (info / "top_level.txt").write_text("\n".join(tops))
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(content)

    return install


def imported(module: str, *names: str, line: int = 1) -> Import:
    return Import(module, names, Path("exp.py"), line, optional=False)


def missing(*imports: Import, add: str = "", lock: dict[str, str] | None = None) -> dict[str, str]:
    """Return what is missing, and the module that shows it."""
    found: tuple[MissingPackage, ...] = missing_packages(
        imports, LOCK if lock is None else lock, [Requirement(text) for text in add.split()]
    )
    return {package.distribution: package.module for package in found}


def test_packages_that_are_installed_are_told_apart_by_the_module(install: Install) -> None:
    install("acme-one", "acme/one/__init__.py", "acme/one/deep.py")
    install("acme-two", "acme/two.py", "acme/fast.cpython-311-x86_64-linux-gnu.so")
    assert missing(imported("acme.one")) == {}
    assert missing(imported("acme", "one")) == {}
    assert missing(imported("acme.one.deep", "function")) == {}
    assert missing(imported("acme.one.only_in_another_version")) == {}
    assert missing(imported("acme", "two")) == {"acme-two": "acme.two"}
    assert missing(imported("acme.two", "function")) == {"acme-two": "acme.two"}
    assert missing(imported("acme.fast")) == {"acme-two": "acme.fast"}
    assert missing(imported("acme", "one", "two")) == {"acme-two": "acme.two"}


def test_a_package_that_is_not_installed_is_guessed_from_its_module(install: Install) -> None:
    install("acme-one", "acme/one/__init__.py", "acme/tools/one.py")
    [package] = missing_packages([imported("acme.three.deep", line=4)], LOCK)
    assert package.distribution == "acme-three"
    assert str(package).startswith(
        "exp.py:4 imports acme.three.deep: the image has no package 'acme-three'; add it with "
        "--pip acme-three (its name is a guess"
    )
    # acme.tools is a namespace itself
    assert missing(imported("acme.tools", "two")) == {"acme-tools-two": "acme.tools.two"}
    assert missing(imported("acme.three.deep"), add="acme-three>=2") == {}


def test_an_import_of_the_namespace_alone_needs_no_more_than_one_of_its_packages(
    install: Install,
) -> None:
    install("acme-one", "acme/one/__init__.py", "acme/tools/one.py")
    assert missing(imported("acme"), imported("acme.tools")) == {}


@pytest.mark.parametrize(
    "init",
    [
        "__path__ = __import__('pkgutil').extend_path(__path__, __name__)",
        "__import__('pkg_resources').declare_namespace(__name__)",
    ],
)
def test_a_namespace_in_the_manner_of_python_2_is_one(install: Install, init: str) -> None:
    install("acme-one", "acme/__init__.py", "acme/one.py", content=init)
    assert missing(imported("acme", "one")) == {}
    assert missing(imported("acme", "two")) == {"acme-two": "acme.two"}


def test_an_ordinary_package_has_whatever_is_imported_from_it(install: Install) -> None:
    install("acme-one", "acme/__init__.py", "acme/one.py")
    assert missing(imported("acme.lazy"), imported("acme", "attribute")) == {}
    # as opencv-python and opencv-python-headless: either does
    install("acme-gui", "acme/__init__.py", "acme/one.py")
    assert missing(imported("acme.one"), lock={"acme-gui": "1.0"}) == {}
    assert missing(imported("acme.one"), lock={}) == {"acme-gui": "acme.one"}


def test_a_package_that_does_not_say_what_it_holds_is_believed(install: Install) -> None:
    install("acme-one", "acme/one.py", record=False)
    assert missing(imported("acme.two")) == {}


@pytest.mark.parametrize(
    ("found", "distribution"),
    [
        (imported("google.cloud.storage"), "google-cloud-storage"),
        (imported("google.cloud.storage.blob", "Blob"), "google-cloud-storage"),
        (imported("google.cloud", "storage"), "google-cloud-storage"),
        (imported("google", "genai"), "google-genai"),
        (imported("google.oauth2", "service_account"), "google-auth"),
        (imported("google.cloud.exceptions", "NotFound"), "google-cloud-core"),
        (imported("azure.storage.blob", "BlobClient"), "azure-storage-blob"),
        (imported("azure.identity"), "azure-identity"),
        (imported("ruamel.yaml"), "ruamel-yaml"),
    ],
)
def test_well_known_namespaces_are_guessed_without_any_package_of_theirs(
    found: Import, distribution: str
) -> None:
    # protobuf, which modal needs, is installed, and gives `google` to the image
    assert list(missing(found, lock=read_lock())) == [distribution]
    assert missing(found, lock=read_lock(), add=distribution) == {}


def test_one_import_does_not_hide_another_of_the_same_namespace() -> None:
    imports = (imported("google.protobuf"), imported("google.cloud", "storage", "bigquery"))
    assert missing(*imports, lock=read_lock()) == {
        "google-cloud-storage": "google.cloud.storage",
        "google-cloud-bigquery": "google.cloud.bigquery",
    }


@pytest.mark.parametrize(
    "module",
    [
        *("google.protobuf", "google.protobuf.message", "google.rpc"),
        *("nvidia.cudnn", "nvidia.cublas"),
        *("opentelemetry.trace", "opentelemetry.sdk.trace", "opentelemetry.proto"),
    ],
)
def test_what_the_lock_has_of_a_namespace_is_present(module: str) -> None:
    assert missing(imported(module), lock=read_lock()) == {}


def test_each_package_is_named_once() -> None:
    found = missing_packages(
        [imported("einops.layers", line=3), imported("einops", "rearrange", line=9)], {}
    )
    assert [package.found.line for package in found] == [3]


def test_a_thousand_imports_of_a_namespace_take_about_a_second_and_import_nothing() -> None:
    imports = [imported("google.cloud", f"service_{number}") for number in range(1000)]
    before = set(sys.modules)
    started = time.perf_counter()
    assert len(missing(*imports, lock=read_lock())) == 1000
    assert time.perf_counter() - started < 5  # 0.3 s on an idle machine
    assert not {name for name in set(sys.modules) - before if name.startswith("google")}
