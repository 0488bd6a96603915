"""The command `ml-experiments`, also `python -m ml_experiments`."""

from __future__ import annotations

import sys

# commands that import an experiment, and options with which they don't, or another process does
_IMPORT = {"run", "sweep", "bench", "check-resume"}
_NEEDS_NO_PROCESS = {"-h", "--help", "--debug", "--detach"}


def main() -> None:
    """Run the command line and exit."""
    if _imports_experiment(sys.argv[1:]):
        from ml_experiments.execution.worker.starting import start_early

        start_early()  # it gets ready while this process imports the command
    from ml_experiments.cli.main import main as run_command

    run_command()


def _imports_experiment(arguments: list[str]) -> bool:
    if not _IMPORT & {*arguments[:1]} or _NEEDS_NO_PROCESS & {*arguments}:
        return False
    if None in (sys.stdin, sys.stdout, sys.stderr):  # closed: a socket would take its number
        return False
    # else it is a command of the group, such as `sweep show`
    return any("=" not in word and ("." in word or ":" in word) for word in arguments[1:])


if __name__ == "__main__":
    main()
