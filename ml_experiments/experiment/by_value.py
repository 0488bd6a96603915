"""Experiments that no file holds, such as a class of a notebook: written to a file by value.

The file is ordinary Python, so it is checked, sent and resumed as other experiments are. It is read
where the experiment executes, and nothing that comes back is ever unpickled.
"""

from __future__ import annotations

import base64
import dis
import io
import pickletools
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any

from ml_experiments.errors import ExperimentPathError

FILE_NAME = "notebook_experiment.py"
_MAX_BYTES = 100_000_000

_SOURCE = '''\
"""{name}, as it was in the notebook or interactive session that started the run."""

import base64

import cloudpickle


def _imports():
    """What it imports, for those who look at this file; nothing calls this."""
{imports}


{name} = cloudpickle.loads(base64.b64decode("""
{data}
"""))
'''


def is_without_file(experiment: Callable[..., Any]) -> bool:
    """Return whether an experiment was defined in a notebook or an interactive session."""
    if experiment.__module__ != "__main__":
        return False
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    return main.__spec__ is None and (file is None or not Path(file).is_file())


def source_of(experiment: Callable[..., Any], secrets: Iterable[str]) -> str:
    """Return the source of a file that holds an experiment by value.

    Args:
        experiment: The class or function.
        secrets: What the file must not hold.

    Raises:
        ExperimentPathError: If it, or what it uses of the notebook, can't be pickled, or is a
            secret.
    """
    name = experiment.__name__
    if not name.isidentifier():
        raise ExperimentPathError(f"{name} has no name to run it by; define it with def")
    import cloudpickle

    try:
        pickled: bytes = cloudpickle.dumps(experiment)
    except Exception as e:
        raise ExperimentPathError(
            f"{experiment.__qualname__} uses something of the notebook that can't be sent to "
            f"another process ({type(e).__name__}: {e}); make it inside run()"
        ) from e
    if len(pickled) > _MAX_BYTES:
        raise ExperimentPathError(
            f"{name} uses variables of the notebook of {len(pickled) / 1e6:,.0f} MB, which would "
            f"be kept with each run; at most {_MAX_BYTES / 1e6:,.0f} MB can be; load them inside "
            "run(), or pass their file in the config"
        )
    if any(secret.encode() in pickled for secret in secrets if secret):
        raise ExperimentPathError(
            f"{name} uses a variable of the notebook that holds a secret, which would be written "
            "to the run folder; read it from the environment inside run()"
        )
    modules = sorted({*_modules_in(pickled), *_imports_in(_code_of(experiment))} - {"__main__"})
    encoded = base64.b64encode(pickled).decode("ascii")
    data = "\n".join(encoded[i : i + 96] for i in range(0, len(encoded), 96))
    imports = [f"    import {module}" for module in modules] or ["    pass"]
    return _SOURCE.format(name=name, imports="\n".join(imports), data=data)


def _modules_in(pickled: bytes) -> Iterator[str]:
    """Yield the modules that a pickle names: it has them in front of each name, as strings."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(io.BytesIO(pickled)):
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name == "GLOBAL":
            yield str(argument).partition(" ")[0]
    # a module that is referred to as a whole is an argument, and not followed by a name
    yield from (text for text in strings if text in sys.modules and _is_module_name(text))


def _is_module_name(text: str) -> bool:
    own = ("cloudpickle", "builtins", "pickle")
    return all(part.isidentifier() for part in text.split(".")) and text.split(".")[0] not in own


def _code_of(experiment: Callable[..., Any]) -> Iterator[CodeType]:
    members = vars(experiment).values() if isinstance(experiment, type) else (experiment,)
    for member in members:
        code = getattr(getattr(member, "__func__", member), "__code__", None)
        if isinstance(code, CodeType):
            yield code


def _imports_in(codes: Iterator[CodeType]) -> Iterator[str]:
    for code in codes:
        for instruction in dis.get_instructions(code):
            if instruction.opname == "IMPORT_NAME":
                yield str(instruction.argval)
        yield from _imports_in(const for const in code.co_consts if isinstance(const, CodeType))
