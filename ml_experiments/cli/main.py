"""The root command: finds the subcommand, and turns errors into messages and exit codes.

Exit codes: 0 success, 1 the run ended in an error or its outcome could not be brought here, 2 bad
usage or config (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import errno
import gc
import importlib
import io
import os
import re
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from ml_experiments import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

    from ml_experiments.errors import Error

# what other programs call a command or an option, or it was once called here
_OTHER_WORDS = {
    "attach": ("follow",),
    "backend": ("local",),
    "delete": ("rm", "clear"),
    "download": ("pull",),
    "kill": ("cancel", "stop"),
    "ls": ("list",),
    "remove": ("rm", "clear"),
    "rm": ("clear",),
}
# command -> module, help; the module is imported when the command is called
COMMANDS = {
    "run": ("ml_experiments.cli.run", "Run an experiment, here or on Modal."),
    "runs": ("ml_experiments.cli.runs", "List, show, compare, label, remove and resume runs."),
    "check-resume": (
        "ml_experiments.cli.check_resume",
        "Kill and resume an experiment, and compare.",
    ),
    "sweep": ("ml_experiments.cli.sweep", "Run an experiment at many points."),
    "bench": ("ml_experiments.cli.bench", "Compare GPU types and settings: speed, cost, memory."),
    "recommend": ("ml_experiments.cli.bench.recommend", "Rank GPU types by cost per output."),
    "cache": ("ml_experiments.cli.cache", "See, fill and trim the model cache."),
    "gpus": ("ml_experiments.cli.gpus", "List GPU types with memory and price."),
    "costs": ("ml_experiments.cli.costs", "Say what runs have cost; find what still costs."),
    "emulator": ("modal_emulator.cli", "Run Modal programs against a local Modal server."),
    "doctor": ("ml_experiments.cli.doctor", "Say what works on this machine."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names of the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command, or say that the experiment stands after `run`."""
        if args and ("." in args[0] or ":" in args[0]):
            ctx.fail(f"no such command {args[0]!r}; write run {args[0]}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ml-experiments")
def cli() -> None:
    """Run any ML experiment class on Modal GPUs, or on this machine, with one call."""


_LOST = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)


class _OutputFile(io.FileIO):
    """Standard output or error, which loses what is written once that can't be written.

    Attributes:
        failure: Why it could not be, unless its reader has gone.
    """

    failure = ""

    def write(self, data: Buffer) -> int:
        """Write, or end the output: the command goes on, as its exit code does not depend on it."""
        try:
            return super().write(data)
        except OSError as e:
            if e.errno not in _LOST:
                raise
            if e.errno != errno.EPIPE:  # else the reader, such as head, has seen enough
                _OutputFile.failure = e.strerror or str(e)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def _open_closed() -> None:
    """Open the standard streams that this process was started without, which Python leaves None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # not closed with this object, for another one may write there
            number = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _outlive_reader(stream: TextIO) -> TextIO:
    """Return a stream to the same place that no pipe breaks."""
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    is_buffered = isinstance(stream.buffer, io.BufferedWriter)
    if not is_buffered and not isinstance(stream.buffer, io.FileIO):
        return stream  # in memory
    stream.flush()
    file = _OutputFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(file) if is_buffered else file,  # python -u: unbuffered
        encoding=stream.encoding,
        errors="backslashreplace",  # a name that isn't Unicode, or that the locale lacks
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def commands_called(word: str) -> list[str]:
    """Return all commands that have this name, such as `ml-experiments runs list`."""
    words = (word, *_OTHER_WORDS.get(word, ()))
    found = [name for name in words if name in COMMANDS]
    for group in COMMANDS:
        command = cli.get_command(click.Context(cli), group)
        if isinstance(command, click.Group):
            found += [f"{group} {name}" for name in words if name in command.commands]
    return [f"ml-experiments {name}" for name in found]


def _suggest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for what a word probably means, or an empty string."""
    from ml_experiments.errors import suggest

    names = list(known)
    return suggest(next((w for w in _OTHER_WORDS.get(word, ()) if w in names), word), names)


def _with_hint(error: click.ClickException) -> click.ClickException:
    """Return what click found wrong with the words of a command, with what was probably meant."""
    if isinstance(error, click.exceptions.NoSuchCommand) and error.ctx is not None:
        group, word = error.ctx.command, error.command_name
        known = group.list_commands(error.ctx) if isinstance(group, click.Group) else ()
        meant, elsewhere = _suggest(word, known), commands_called(word)
        if not meant and elsewhere:
            meant = f"; write {' or '.join(elsewhere)}"
        return click.UsageError(f"no such command {word!r}{meant}", error.ctx)
    if isinstance(error, click.UsageError) and error.ctx is not None:
        # without their dashes, which make short names look alike
        known = [o.lstrip("-") for p in error.ctx.command.params for o in p.opts if o[0] == "-"]
        if isinstance(error, click.NoSuchOption):
            meant = _suggest(error.option_name.lstrip("-"), known).replace("mean '", "mean '--")
            if not meant and isinstance(error.ctx.command, click.Group):
                meant = "; options stand behind the name of the command that they are for"
            return click.UsageError(f"no such option {error.option_name!r}{meant}", error.ctx)
        extra = re.match(r"Got unexpected extra argument \((?P<name>[\w-]+)=(.*)\)", error.message)
        if extra and extra["name"] in known:
            return click.UsageError(
                f"{error.message}; write --{extra['name']} {extra[2]}", error.ctx
            )
    return error


def tell(error: Error) -> int:
    """Print what was wrong; return the exit code that stands for it."""
    from ml_experiments.errors import RunNotCollectedError
    from ml_experiments.runner.display.printable import printable_lines

    click.echo(f"error: {printable_lines(str(error))}", err=True)
    return 1 if isinstance(error, RunNotCollectedError) else 2


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit."""
    from ml_experiments.errors import Error
    from ml_experiments.runner.display.printable import printable_lines

    _open_closed()
    sys.stdout, sys.stderr = _outlive_reader(sys.stdout), _outlive_reader(sys.stderr)
    try:
        code: Any = cli.main(arguments, prog_name="ml-experiments", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message())
        code = 2
    except click.ClickException as e:
        shown = io.StringIO()
        _with_hint(e).show(shown)
        click.echo(printable_lines(shown.getvalue()), err=True, nl=False)
        code = e.exit_code
    except Error as e:
        code = tell(e)
    except (KeyboardInterrupt, click.Abort):
        code = 130
    sys.stdout.flush()
    if _OutputFile.failure:
        message = f"the output of this command can't be written: {_OutputFile.failure}"
        click.echo(f"error: {message}", err=True)
        code = code or 1
    if "ml_experiments.backends.in_process" not in sys.modules:  # else files of a run may be open
        gc.freeze()  # or Python's end would look through every object of every module
    sys.exit(code if isinstance(code, int) else 0)
