"""Imports the class that an import path names, and finds the import path of a class."""

from __future__ import annotations

import enum
import importlib
import importlib.util
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_experiments.errors import ExperimentPathError, suggest
from ml_experiments.experiment.pip_names import pip_name
from ml_experiments.experiment.reference import ExperimentPath, parse_experiment_path
from ml_experiments.experiment.tracebacks import describe_error, needs_terminal, place_of

EXTRAS_HINT = "it with: pip install 'ml_experiments[diffusion,training]'"
# a thread or a process has a run() too, but its own __init__ takes no config
_STARTED_ELSEWHERE = ("threading", "multiprocessing.process")
# what this process has loaded; a warm worker loads the same for each run
_loaded: dict[str, tuple[ExperimentPath, Any]] = {}
_importing = threading.local()  # `.path`: what this thread is importing


def load_experiment(path: str, import_paths: Iterable[str] = ()) -> Callable[..., Any]:
    """Import the class or function that an import path names.

    Args:
        path: The import path.
        import_paths: Folders put first on `sys.path`.

    Raises:
        ExperimentPathError: If the module doesn't import, or holds no such experiment.
    """
    parsed, known = _loaded.get(path) or (parse_experiment_path(path), None)
    folders = list(dict.fromkeys([*import_paths, *([str(parsed.root)] if parsed.root else [])]))
    if sys.path[: len(folders)] != folders:  # folders of other experiments come after these
        sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
    with _importing_module(parsed):
        module = _import(parsed)
        target: Any = module
        for part in parsed.name.split("."):
            target = getattr(target, part, None)  # a module may have a __getattr__ of its own
    if target is None:
        raise ExperimentPathError(_not_in_module(parsed, module))
    if target is not known:
        check_experiment(target, path)
        if parsed.file is None or path == f"{parsed.file}:{parsed.name}":  # from any folder
            _loaded[path] = parsed, target
    return target  # type: ignore[no-any-return]


def refuse_while_importing() -> None:
    """Raise an error if a run is started by the module of an experiment while it is imported.

    Each process that executes the experiment imports the module, and would start the run again.

    Raises:
        ExperimentPathError: If this thread is importing an experiment's module.
    """
    path = getattr(_importing, "path", None)
    if path is not None:
        raise ExperimentPathError(
            f"a run is started while {path} is imported, so each process that executes the "
            'experiment would start it again; put the call below: if __name__ == "__main__":'
        )


def check_experiment(target: Any, path: str) -> Callable[..., Any]:
    """Return an object that can be an experiment: a class with `run()`, or a function.

    Raises:
        ExperimentPathError: If it is something else.
    """
    if inspect.isclass(target):
        run = getattr(target, "run", None)
        if not callable(run):
            raise ExperimentPathError(
                f"{path} has no run() method; an experiment is a class with "
                "__init__(self, config) and run(self)"
            )
        _refuse_unfinished(run, f"{path}.run()")
        _check_class(target, path)
        return target
    if inspect.isfunction(target):
        outer = target.__qualname__.rpartition(".")[0]
        if outer and "<locals>" not in outer and next(iter(_parameters(target)), "") == "self":
            raise ExperimentPathError(
                f"{path} is a method; name its class: {target.__module__}:{outer}"
            )
        _refuse_unfinished(target, path)
        return target
    what = f"{path} is of type {type(target).__name__}, not a class or a function"
    if _is_experiment(type(target)):
        what += f"; pass the class itself: {type(target).__name__}"
    raise ExperimentPathError(what)


def _is_experiment(target: Any) -> bool:
    try:
        check_experiment(target, "")
    except ExperimentPathError:
        return False
    return True


def _parameters(function: Callable[..., Any]) -> Iterable[str]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()


def _takes_config(target: type[Any]) -> bool:
    try:
        inspect.signature(target).bind(None)
    except TypeError:
        return False
    except ValueError:  # of a class in C
        return True
    return True


def _check_class(target: type[Any], path: str) -> None:
    """Refuse a class that can't be made with a config alone, or whose run() takes more."""
    if issubclass(target, enum.Enum):
        raise ExperimentPathError(
            f"{path} is an enum, of which no instance is made from a config; name a class with "
            "__init__(self, config) and run(self), or a function"
        )
    if getattr(target, "_is_protocol", False):
        raise ExperimentPathError(f"{path} is a protocol; name a class that implements it")
    if inspect.isabstract(target):
        raise ExperimentPathError(
            f"{path} is abstract; name a class that defines {', '.join(target.__abstractmethods__)}"
        )
    if not _takes_config(target):
        raise ExperimentPathError(
            f"{path} does not take a config; write def __init__(self, config): in it, or "
            f"class {target.__name__}(ml_experiments.Experiment):"
        )
    field = _field_for_config(target)
    if field is not None:
        raise ExperimentPathError(
            f"{path} takes {field} where the config goes, which is one value with all fields; "
            "write def __init__(self, config): in it, or make it a function with these parameters"
        )
    run = inspect.getattr_static(target, "run")
    if inspect.isfunction(run):
        try:
            inspect.signature(run).bind(None)
        except TypeError as e:
            raise ExperimentPathError(
                f"{path}.run() can't be called without arguments: {e}; write def run(self): and "
                "take values from the config"
            ) from e


def _field_for_config(target: type[Any]) -> str | None:
    """Return the first parameter of a class if it takes another kind of value than a config."""
    try:
        first = next(iter(inspect.signature(target).parameters.values()), None)
    except (TypeError, ValueError):
        return None
    if first is None or first.kind is first.VAR_POSITIONAL:
        return None
    if getattr(target.__init__, "__module__", None) in _STARTED_ELSEWHERE:
        return first.name
    kinds = (bool, int, float, str)
    is_one = isinstance(first.default, kinds) or first.annotation in kinds
    return first.name if is_one or first.annotation in [k.__name__ for k in kinds] else None


def _refuse_unfinished(function: Callable[..., Any], name: str) -> None:
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise ExperimentPathError(
            f"{name} is async, and would return before it has run; call asyncio.run() in it"
        )
    if inspect.isgeneratorfunction(function):
        raise ExperimentPathError(
            f"{name} is a generator, as it has a yield, and would return before it has run; "
            "collect the values in a list, and return that"
        )


def path_of(experiment: Callable[..., Any]) -> tuple[str, str | None]:
    """Return the import path of a class or function, and the folder to import it from.

    Raises:
        ExperimentPathError: If another process could not import it.
    """
    check_experiment(experiment, getattr(experiment, "__qualname__", repr(experiment)))
    name = experiment.__qualname__
    if "<locals>" in name or "<lambda>" in name:
        raise ExperimentPathError(
            f"{name} is defined inside a function, where no other process can import it; "
            "move it to the top level of its module"
        )
    module = sys.modules.get(experiment.__module__)
    file = getattr(module, "__file__", None)
    if experiment.__module__ != "__main__":
        return f"{experiment.__module__}:{name}", _root_of(experiment.__module__, file)
    spec = getattr(module, "__spec__", None)
    if spec is not None:  # started with python -m
        return f"{spec.name}:{name}", _root_of(spec.name, file)
    return f"{Path(str(file)).resolve()}:{name}", None


def _root_of(module: str, file: str | None) -> str | None:
    if file is None:
        return None
    path = Path(file).resolve()
    depth = module.count(".") + (1 if path.name == "__init__.py" else 0)
    return str(path.parents[depth])


@contextmanager
def _importing_module(parsed: ExperimentPath) -> Iterator[None]:
    """Report what the module raises while it is imported, also what ends a program."""
    previous = getattr(_importing, "path", None)
    _importing.path = parsed.file or parsed.module
    try:
        yield
    except (ExperimentPathError, KeyboardInterrupt):
        raise
    except BaseException as e:
        if isinstance(e, ModuleNotFoundError) and e.name:
            raise ExperimentPathError(_module_missing(parsed, e), missing_module=e.name) from e
        raise import_failed(parsed.module, e) from e
    finally:
        _importing.path = previous


def import_failed(module: str, error: BaseException) -> ExperimentPathError:
    """Return the error for an exception that ended the import of a module."""
    text = f"importing {module} failed: {describe_error(error)}"
    if needs_terminal(error):
        text += (
            "\nthe module is imported in a process without a terminal; for a debugger or input(), "
            "run it with --debug, or move it into run()"
        )
    if isinstance(error, ImportError) and "with no known parent package" in str(error):
        text += (
            f"\n{module} is imported as a file of its own: write `from name import …` without the "
            "dot, or, with an __init__.py beside it, name it by its package: package.module.name"
        )
    return ExperimentPathError(text)


def _import(parsed: ExperimentPath) -> ModuleType:
    if parsed.file is None:
        return importlib.import_module(parsed.module)
    return _import_file(parsed, parsed.file)


def _import_file(parsed: ExperimentPath, file: Path) -> ModuleType:
    name = parsed.module
    found = sys.modules.get(name)
    if found is None and importlib.util.find_spec(name) is not None:
        found = importlib.import_module(name)
    if found is not None and getattr(found, "__file__", None):
        if found.__file__ == str(file) or Path(str(found.__file__)).resolve() == file:
            return found
        # another module has the name already, as with a user's random.py
        name = f"experiment_file_{re.sub(r'[^0-9A-Za-z_]', '_', str(file))}"
        if name in sys.modules:
            return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_missing(parsed: ExperimentPath, error: ModuleNotFoundError) -> str:
    missing = error.name or ""
    if missing and (parsed.module == missing or parsed.module.startswith(f"{missing}.")):
        parent, _, last = missing.rpartition(".")
        outer = getattr(sys.modules.get(parent), last, None)
        if inspect.isclass(outer):  # a nested class, written after a dot
            nested = f"{parsed.module.removeprefix(parent)[1:]}.{parsed.name}"
            inner = getattr(outer, parsed.name, None)
            name = nested if inner is None or inspect.isclass(inner) else last
            return f"{missing!r} is a class, not a module; write {parent}:{name}"
        return (
            f"there is no module {missing!r}{suggest(last, _siblings(parent))}; it was looked for "
            f"in {parent or 'the current folder and the installed packages'}"
        )
    place = place_of(error)
    needs = f"importing {parsed.module} needs the module {missing!r}, which is not installed here"
    if place is not None:
        needs += f" (imported in {place})"
    parent, _, last = missing.rpartition(".")
    if getattr(sys.modules.get(parent), "__file__", None):
        return (
            f"importing {parsed.module} needs {missing!r}, which {parent} does not have"
            f"{suggest(last, _siblings(parent))}" + (f" (imported in {place})" if place else "")
        )
    if parent:  # another package of the same namespace is installed
        return f"{needs}; install the package that has it"
    if parsed.module.startswith("ml_experiments.tasks."):
        return f"{needs}; install {EXTRAS_HINT}"
    name = pip_name(missing)
    return (
        f"{needs}; install it with: pip install {name} (or, for a run on Modal, import it inside "
        f"run() and give --pip {name})"
    )


def _siblings(package: str) -> list[str]:
    import pkgutil

    if not package:
        return [m.name for m in pkgutil.iter_modules([str(Path.cwd())])]
    module = sys.modules.get(package)
    return [m.name for m in pkgutil.iter_modules(getattr(module, "__path__", []))]


def _not_in_module(parsed: ExperimentPath, module: ModuleType) -> str:
    names = sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and _is_experiment(value)
    )
    known = ", ".join(names) if names else "none"
    return (
        f"{parsed.module} has no {parsed.name!r}{suggest(parsed.name, names)}; "
        f"experiments in it: {known}"
    )
