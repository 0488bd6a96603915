"""Writes commands.md, options.md and emulator-fields.md in docs/reference from the code itself.

python scripts/reference_pages.py            write them
python scripts/reference_pages.py --check    exit with 1 if they are not what would be written
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ml_experiments.backends.local.options import LocalOptions
from ml_experiments.backends.modal.options import ModalOptions
from ml_experiments.backends.slurm.options import SlurmOptions
from ml_experiments.cli.main import cli
from ml_experiments.cli.parameters import flag_of
from ml_experiments.config.options import descriptions
from ml_experiments.runner.bench.options import BenchOptions
from ml_experiments.runner.options import RunOptions
from ml_experiments.runner.sweeps.options import SweepOptions
from modal_emulator.rpc.protocol_fields import FIELDS

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
WRITTEN = "<!-- written by scripts/reference_pages.py; a change here is overwritten -->"
OPTIONS_OF = {
    RunOptions: "of `run_experiment`, `submit_experiment` and `prepare_run`",
    BenchOptions: "of `bench`, besides `vary`",
    SweepOptions: "of `sweep`, besides those of runs",
    LocalOptions: 'of `LocalBackend`, and of `backend_options=` with `backend="local"`',
    SlurmOptions: 'of `backend_options=` with `backend="slurm"`, and of `--slurm NAME=VALUE`',
    ModalOptions: 'of `ModalBackend`, and of `backend_options=` with `backend="modal"`',
}
EXPERIMENT_OPTIONS = (RunOptions, ModalOptions)  # those that are flags too


def commands_page() -> str:
    """Return the page of all commands."""
    lines = [
        "# Commands",
        WRITTEN,
        "",
        "Every command takes `--help`. Exit codes: 0 success, 1 the run ended in an error or its "
        "outcome could not be brought here, 2 bad usage or config (nothing was started), "
        "130 interrupted.",
        "",
    ]
    for name, command in walk(cli, "ml-experiments"):
        lines += describe(name, command)
    return "\n".join(lines).rstrip() + "\n"


def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    """Yield a command's sub-commands with their full names, groups before their members."""
    if not isinstance(command, click.Group):
        return
    context = click.Context(command, info_name=name)
    for member in command.list_commands(context):
        found = command.get_command(context, member)
        if found is not None and not found.hidden:
            yield f"{name} {member}", found
            yield from walk(found, f"{name} {member}")


def describe(name: str, command: click.Command) -> list[str]:
    """Return the lines about one command."""
    level = "##" if name.count(" ") == 1 else "###"
    usage = command.collect_usage_pieces(click.Context(command, info_name=name))
    rows = [
        (flags_of(option), f"{option.help}{default_of(option)}")
        for option in command.params
        if isinstance(option, click.Option) and not option.hidden
    ]
    lines = [f"{level} {name}", "", *paragraphs(command.help or ""), ""]
    if not isinstance(command, click.Group):
        lines += ["```text", " ".join([name, *usage]), "```", ""]
    if rows:
        lines += ["| option | |", "|---|---|"]
        lines += [f"| `{flags}` | {cell(text)} |" for flags, text in rows]
        lines.append("")
    return lines


def paragraphs(text: str) -> list[str]:
    """Return help text as Markdown: a block that click keeps as it is becomes a code block."""
    lines = []
    for block in inspect.cleandoc(text).split("\n\n"):
        if block.startswith("\b\n"):
            lines += ["```text", *block.removeprefix("\b\n").splitlines(), "```", ""]
        else:
            lines += [*block.splitlines(), ""]
    return lines[:-1]


def flags_of(option: click.Option) -> str:
    """Return an option's flags, with the name of its value."""
    flags = ", ".join([*option.opts, *option.secondary_opts])
    if option.is_flag or option.count:
        return flags
    if isinstance(option.type, click.Choice):
        return f"{flags} {', '.join(map(str, option.type.choices))}"
    return f"{flags} {option.metavar or option.type.name.partition(' ')[0].upper()}"


def default_of(option: click.Option) -> str:
    """Return an option's default, where there is one that help shows."""
    if not option.show_default:
        return ""
    return f" Default: {option.default}."


def options_page() -> str:
    """Return the page of the options from Python."""
    lines = [
        "# Options",
        WRITTEN,
        "",
        "Options are keyword arguments. One that does not exist is an error that names the "
        "nearest; `None` is the same as not given.",
        "",
    ]
    for schema, of in OPTIONS_OF.items():
        flags = " A flag is that of `ml-experiments run`." if schema in EXPERIMENT_OPTIONS else ""
        lines += [f"## {schema.__name__}", "", f"Options {of}.{flags}", ""]
        is_flag = schema in EXPERIMENT_OPTIONS
        lines += ["| option | type | " + ("flag | |" if is_flag else "|")]
        lines += ["|---|---|---|" + ("---|" if is_flag else "")]
        for name, (kind, text) in descriptions(schema).items():
            flag = f"`{flag_of(name, kind)}` | " if is_flag else ""
            lines.append(f"| `{name}` | {cell(f'`{type_name(kind)}`')} | {flag}{cell(text)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def fields_page() -> str:
    """Return the page of what the local Modal server does with each field of the protocol."""
    lines = [
        "# Fields of the Modal protocol",
        WRITTEN,
        "",
        "What [the local Modal server](../emulator.md) does with each field by which a client "
        "defines functions, classes, schedules, secrets and images, or starts a shell. A field "
        "that is *recorded* shows a warning at the client. A function with a field that is "
        "*refused* is accepted, so that the rest of its file can be used, and a call of it is an "
        "error; in an image, a class, `with_options` or a shell, it is an error at once. So is a "
        "field of a newer client.",
        "",
    ]
    for message, fields in FIELDS.items():
        lines += [f"## {message}", "", "| field | | set by |", "|---|---|---|"]
        for name, field in sorted(fields.items()):
            treatment = field.treatment.value + (f": {field.note}" if field.note else "")
            option = "" if field.option == name else field.option
            lines.append(f"| `{name}` | {cell(treatment)} | {cell(option)} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def type_name(kind: Any) -> str:
    """Return a type as an annotation without module names."""
    text = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    text = re.sub(r"\b(collections\.abc|pathlib(\._local)?|typing)\.", "", text)
    text = re.sub(r"Annotated\[(\w+), [^]]*\]", r"\1", text)
    text = re.sub(r"^Optional\[(.*)\]$", r"\1 or None", text)  # how Literal | None prints
    return text.replace(" | ", " or ")  # a bar would end the cell of a table


def cell(text: str) -> str:
    """Return text for the cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


PAGES = {
    "commands.md": commands_page,
    "options.md": options_page,
    "emulator-fields.md": fields_page,
}

if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit(__doc__)
    old = {name: (FOLDER / name).read_text(encoding="utf-8") for name in PAGES if sys.argv[1:]}
    for name, page in PAGES.items():
        if not sys.argv[1:]:
            (FOLDER / name).write_text(page(), encoding="utf-8")
        elif old[name] != page():
            sys.exit(f"docs/reference/{name} is out of date: python scripts/reference_pages.py")
