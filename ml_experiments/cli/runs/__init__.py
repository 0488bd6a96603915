"""`ml-experiments runs …`: one module for each kind of command."""

from __future__ import annotations

import click

from ml_experiments.cli.runs.comparing import compare, diff
from ml_experiments.cli.runs.following import cancel, follow, logs, wait
from ml_experiments.cli.runs.labelling import name, note, tag
from ml_experiments.cli.runs.listing import list_
from ml_experiments.cli.runs.removing import rm
from ml_experiments.cli.runs.replaying import replay
from ml_experiments.cli.runs.resuming import resume
from ml_experiments.cli.runs.showing import show
from ml_experiments.cli.runs.syncing import pull, sync


@click.group()
def runs() -> None:
    """List, show, compare, follow, cancel, resume, label and remove runs."""


_FINDING = (list_, show, compare, diff)
_GOING_ON = (follow, logs, wait, cancel, resume, replay)
_KEEPING = (tag, name, note, rm, sync, pull)
for _command in (*_FINDING, *_GOING_ON, *_KEEPING):
    runs.add_command(_command)
