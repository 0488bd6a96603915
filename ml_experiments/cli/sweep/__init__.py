"""`ml-experiments sweep …`."""

from ml_experiments.cli.sweep.commands import sweep

__all__ = ["sweep"]
