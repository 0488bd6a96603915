"""A worker as an interpreter of its own, for experiments whose template can't be forked."""

from __future__ import annotations

import socket
import sys

from ml_experiments.execution.worker.child import Worker
from ml_experiments.execution.worker.sources import LoadedSources
from ml_experiments.execution.worker.template import set_up_process


def main() -> None:
    """Serve the socket whose file descriptor is the first argument."""
    set_up_process()
    connection = socket.socket(fileno=int(sys.argv[1]))
    sys.argv = [""]
    sources = LoadedSources()
    sources.record_imports()
    Worker(connection, sources).serve()
