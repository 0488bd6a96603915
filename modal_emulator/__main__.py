"""Runs the command line, as `python -m modal_emulator`."""

from __future__ import annotations

from modal_emulator.cli import main

if __name__ == "__main__":
    main()
