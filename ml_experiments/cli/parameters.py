"""Command-line options made from a set of options, and the kinds of values that click lacks."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import click
from click.core import ParameterSource

from ml_experiments.config.options import descriptions
from ml_experiments.errors import suggest

Format = Literal["table", "json", "csv"]

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


# the same for all commands that start something
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
CONFIG = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="YAML or JSON file."
)


class Duration(click.ParamType[float]):
    """A length of time such as `90`, `45s`, `2h` or `1h30m`; seconds as a float."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        given = str(value).strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", given):
            seconds = float(given)
        elif re.fullmatch(r"(\d+(\.\d+)?[smhd])+", given):
            parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", given)
            seconds = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        else:
            self.fail(f"{value!r} is not a duration; write 90, 45s, 30m, 1h30m or 7d", param, ctx)
        if seconds <= 0:
            self.fail(f"{value!r} must be above 0", param, ctx)
        return seconds


class Size(click.ParamType[int]):
    """A size such as `500`, `200MB` or `5GB`, in decimal units as tables print them; bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return bytes."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)b?", str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is not a size; write 500, 200MB or 5GB", param, ctx)
        return int(float(match[1]) * _UNITS_BYTES[match[2]])


class Memory(click.ParamType[float]):
    """An amount of memory such as `16`, `16GiB`, `512MiB` or, in decimal units, `16GB`; GiB."""

    name = "memory"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return GiB."""
        match = re.fullmatch(
            r"(-?\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgt])(i?)b)?", str(value).strip().lower()
        )
        if match is None:
            self.fail(
                f"{value!r} is no amount of memory; write 16 or 16GiB for GiB, 512MiB, or 16GB for "
                "decimal GB (14.9 GiB)",
                param,
                ctx,
            )
        number, unit, is_binary = float(match[1]), match[2] or "g", match[3] or not match[2]
        if is_binary:
            return number * 1024.0 ** ("kmgt".index(unit) - 2)
        return number * _UNITS_BYTES[unit] / 1024**3


class Tag(click.ParamType[tuple[str, str]]):
    """A tag written `key=value`."""

    name = "key=value"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return the key and the value."""
        if isinstance(value, tuple):
            return value
        key, equals, tag = str(value).partition("=")
        if not equals or not key.strip():
            self.fail(f"{value!r} has no key or no value; write key=value", param, ctx)
        return key.strip(), tag


def yes_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that starts something without asking about its cost."""
    return click.option("--yes", is_flag=True, help=f"Don't ask, whatever {what} may cost.")


def max_cost_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that replaces a cap."""

    def check(context: click.Context, _option: click.Parameter, given: float | None) -> Any:
        from ml_experiments.config.options import read_options
        from ml_experiments.runner.options import RunOptions

        name = context.command_path.removeprefix("ml-experiments ")
        return read_options(RunOptions, {"max_cost": given}, name).get("max_cost")

    text = f"Another cap, for all {what} together."
    return click.option("--max-cost", type=float, callback=check, help=text)


def csv_option(rows: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that prints rows as CSV."""
    return click.option("--csv", "as_csv", is_flag=True, help=f"Print the {rows} as CSV on stdout.")


def format_of(as_json: bool, as_csv: bool) -> Format:
    """Return how a report is printed.

    Raises:
        click.UsageError: If two ways were asked for.
    """
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    return "json" if as_json else "csv" if as_csv else "table"


def options_of(schema: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds the options of a TypedDict to a command.

    `timeout_s` becomes `--timeout`, `memory_gib` `--memory`; a list or a dict is an option that
    may be repeated, without the plural's s: `secrets` becomes `--secret`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, (kind, summary) in reversed(descriptions(schema).items()):
            command = _option(name, kind, summary)(command)
        return command

    return decorate


def given_options(schema: type[Any]) -> dict[str, Any]:
    """Return those options of a TypedDict that stand on the current command line."""
    context = click.get_current_context()
    return {
        name: dict(value) if _flavour(kind) is Mapping else value
        for name, (kind, _) in descriptions(schema).items()
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for value in [context.params[name]]
    }


def read_pairs(schema: type[Any], pairs: Iterable[tuple[str, str]], flag: str) -> dict[str, Any]:
    """Return the options of a TypedDict that were written as `name=value`; `a.b=value` for a dict.

    Raises:
        click.UsageError: If there is no such option, a value has another type, or an option that
            takes one was given again.
    """
    known = {name: kind for name, (kind, _) in descriptions(schema).items()}
    found: dict[str, Any] = {}
    for key, value in pairs:
        name, _, inner = key.partition(".")
        if name not in known:
            raise click.UsageError(
                f"{flag} {key}={value}: there is no such option{suggest(name, known)}; known: "
                f"{', '.join(known)}"
            )
        flavour = _flavour(known[name])
        is_known = inner in found.get(name, ()) if inner else name in found
        if is_known and flavour is not list:
            raise click.UsageError(f"{flag} {key} was given again, as {value!r}")
        if flavour is Mapping:
            if not inner:
                raise click.UsageError(f"{flag} {key}={value}: write {flag} {name}.OPTION={value}")
            found.setdefault(name, {})[inner] = value
        elif flavour is list:
            found.setdefault(name, []).append(value)
        else:
            try:
                found[name] = flavour(value) if flavour in (int, float) else value
            except ValueError as e:
                raise click.UsageError(f"{flag} {key}={value}: {value!r} is not a number") from e
    return found


def flag_of(name: str, kind: Any) -> str:
    """Return the flag of an option, such as `--timeout` for `timeout_s`."""
    is_repeated = _flavour(kind) in (list, Mapping)
    word = name.removesuffix("s") if is_repeated else re.sub("_(s|gib)$", "", name)
    return f"--{word.replace('_', '-')}"


def _option(
    name: str, kind: Any, summary: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    flavour, flag = _flavour(kind), flag_of(name, kind)
    if {bool, str} <= set(typing.get_args(kind)):  # alone, or with a value
        return click.option(flag, name, is_flag=False, flag_value="larger", help=summary)
    if flavour is bool:
        return click.option(flag, name, is_flag=True, help=summary)
    if flavour is list:
        return click.option(flag, name, multiple=True, help=f"{summary} Repeatable.")
    if flavour is Mapping:
        return click.option(flag, name, type=Tag(), multiple=True, help=f"{summary} Repeatable.")
    if flavour is Path:
        return click.option(flag, name, type=click.Path(path_type=Path), help=summary)
    if flavour is float and name.endswith("_s"):
        return click.option(flag, name, type=Duration(), help=f"{summary} Such as 90s, 30m or 2h.")
    if flavour is float and name.endswith("_gib"):
        return click.option(flag, name, type=Memory(), help=f"{summary} Such as 16, or 512MiB.")
    if typing.get_origin(flavour) is typing.Literal:
        choices = click.Choice(typing.get_args(flavour))
        return click.option(flag, name, type=choices, help=summary)
    return click.option(flag, name, type=flavour, help=summary)


def _flavour(kind: Any) -> type[Any]:
    """Return what decides how an option is written: bool, int, float, str, Path, list, Mapping."""
    kinds = [k for k in (typing.get_args(kind) or (kind,)) if k is not type(None)]
    origin = typing.get_origin(kind) or kind
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return Mapping
    for inner in kinds:
        inner_origin = typing.get_origin(inner)
        if isinstance(inner_origin, type) and issubclass(inner_origin, Mapping):
            return Mapping
    if str(origin).endswith("Sequence'>"):
        return list
    return Path if Path in kinds else kinds[0]
