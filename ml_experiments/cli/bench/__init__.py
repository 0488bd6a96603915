"""`ml-experiments bench` and `ml-experiments recommend`."""

from ml_experiments.cli.bench.commands import bench

__all__ = ["bench"]
