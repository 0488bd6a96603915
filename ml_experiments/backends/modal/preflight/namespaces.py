"""Namespaces, such as `google`, whose modules come from many packages: which one has a module."""

from __future__ import annotations

from collections.abc import Callable

from packaging.utils import canonicalize_name

from ml_experiments.experiment.pip_names import pip_name

# those that are met most; others are found where a package of theirs is installed
_NAMESPACES = {
    *("azure", "azure.ai", "azure.data", "azure.keyvault", "azure.mgmt", "azure.monitor"),
    *("azure.cognitiveservices", "azure.search", "azure.storage", "backports"),
    *("google", "google.ai", "google.cloud", "jaraco", "nvidia"),
    *("opentelemetry", "opentelemetry.exporter", "opentelemetry.exporter.otlp"),
    *("opentelemetry.exporter.otlp.proto", "opentelemetry.instrumentation"),
    *("ruamel", "sphinxcontrib", "zope"),
}

# module -> its package, where the name of one does not follow from that of the other
_DISTRIBUTIONS = {
    "google.api": "googleapis-common-protos",
    "google.cloud.client": "google-cloud-core",
    "google.cloud.exceptions": "google-cloud-core",
    "google.logging": "googleapis-common-protos",
    "google.longrunning": "googleapis-common-protos",
    "google.oauth2": "google-auth",
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "google.type": "googleapis-common-protos",
    "opentelemetry.baggage": "opentelemetry-api",
    "opentelemetry.context": "opentelemetry-api",
    "opentelemetry.metrics": "opentelemetry-api",
    "opentelemetry.propagate": "opentelemetry-api",
    "opentelemetry.semconv": "opentelemetry-semantic-conventions",
    "opentelemetry.trace": "opentelemetry-api",
}


def is_known_namespace(module: str) -> bool:
    """Return whether many packages share this name."""
    return module in _NAMESPACES


def prefixes_of(module: str) -> list[str]:
    """Return a, a.b and a.b.c of a.b.c."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def guess_distribution(module: str, is_namespace: Callable[[str], bool]) -> str:
    """Return the package that a module which is not installed here probably comes from.

    google.cloud.storage.blob is of google-cloud-storage, as google and google.cloud are namespaces.

    Args:
        module: Its absolute name.
        is_namespace: Whether a module is a namespace.
    """
    for prefix in prefixes_of(module):
        if prefix in _DISTRIBUTIONS:
            return _DISTRIBUTIONS[prefix]
        if not is_namespace(prefix):
            return canonicalize_name(prefix if "." in prefix else pip_name(prefix))
    return canonicalize_name(module)
