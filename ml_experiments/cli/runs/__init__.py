"""`ml-experiments runs …`: one module for each kind of command."""

from __future__ import annotations

import click

from ml_experiments.cli.runs.comparing import compare, diff
from ml_experiments.cli.runs.labelling import name, note, tag
from ml_experiments.cli.runs.listing import list_
from ml_experiments.cli.runs.removing import rm
from ml_experiments.cli.runs.replaying import replay
from ml_experiments.cli.runs.resuming import attach, resume
from ml_experiments.cli.runs.showing import show


@click.group()
def runs() -> None:
    """List, show, compare, label, remove and resume runs."""


for _command in (list_, show, compare, diff, replay, resume, attach, tag, name, note, rm):
    runs.add_command(_command)
