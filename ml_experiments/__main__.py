"""The command `ml-experiments`, also `python -m ml_experiments`."""

from __future__ import annotations

import sys

_NEEDS_NO_PROCESS = {"-h", "--help", "--debug", "--detach"}


def main() -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["run"] and len(arguments) > 1 and not _NEEDS_NO_PROCESS & {*arguments}:
        from ml_experiments.execution.worker.starting import start_early

        start_early()  # it gets ready while this process imports the command
    from ml_experiments.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
