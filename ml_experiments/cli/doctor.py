"""`ml-experiments doctor`."""

from __future__ import annotations

import dataclasses
import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def doctor(as_json: bool) -> int:
    """Say what works on this machine, and what to do about the rest.

    Exit code 1 when something is broken; what is merely absent is fine.
    """
    from ml_experiments.cli.doctor_checks import examine

    checks = examine()
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(check) for check in checks]))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            word, colour = _VERDICTS[check.ok]
            click.echo(
                f"{click.style(f'{word:<7}', fg=colour)} {check.name:<{width}}  {check.found}"
            )
            if check.advice:
                click.echo(f"{'':<{width + 10}}-> {check.advice}")
    return int(any(check.ok is False for check in checks))


_VERDICTS = {True: ("ok", "green"), False: ("broken", "red"), None: ("absent", "yellow")}
