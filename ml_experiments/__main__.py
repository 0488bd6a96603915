"""The command `ml-experiments`, also `python -m ml_experiments`."""

from __future__ import annotations

from ml_experiments.cli.main import main

if __name__ == "__main__":
    main()
