"""What one run in a warm process must not leave to the next.

What the import of an experiment and its `setup()` have changed stays, for they stay as well. What
libraries keep for themselves, such as the options of pandas, is not put back.
"""

from __future__ import annotations

import contextlib
import decimal
import faulthandler
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ml_experiments.settings import restore_environment, whole_environment

# the worker's own; each run puts them back
_OWN_SIGNALS = {signal.SIGINT, signal.SIGALRM, signal.SIGKILL, signal.SIGSTOP}
_SIGNALS = sorted(signal.valid_signals() - _OWN_SIGNALS)
_LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
_MIN_FLOAT = [sys.float_info.min]  # so that the division is not done beforehand
# module, and names of it
_ATTRIBUTES = (
    ("sys", ("excepthook", "unraisablehook", "displayhook", "dont_write_bytecode")),
    ("sys", ("stdin", "stdout", "stderr", "argv", "path", "meta_path", "path_hooks")),
    ("threading", ("excepthook",)),
    ("warnings", ("filters", "showwarning", "formatwarning")),
    ("logging", ("_warnings_showwarning", "_loggerClass", "_logRecordFactory", "raiseExceptions")),
    ("tempfile", ("tempdir",)),
    ("asyncio.events", ("_event_loop_policy",)),
)


@dataclass(frozen=True)
class _Setting:
    """One thing that a run may change, and how it is read and put back."""

    read: Callable[[], Any]
    put_back: Callable[[Any], object]


def _put_back_umask(umask: int) -> None:
    os.umask(umask)


def _read_umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _read_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - a hot path
    except FileNotFoundError:
        return None


def _put_back_folder(folder: str | None) -> None:
    if folder is not None:
        with contextlib.suppress(OSError):  # deleted since
            os.chdir(folder)


def _put_back_environment(variables: dict[str, str]) -> None:
    restore_environment(variables)
    time.tzset()


def _put_back_signals(handlers: list[Any]) -> None:
    for number, handler in zip(_SIGNALS, handlers, strict=True):
        if handler is not None:  # as for one that Python has not set
            signal.signal(number, handler)


def _put_back_limits(limits: list[tuple[int, int]]) -> None:
    for limit, value in zip(_LIMITS, limits, strict=True):
        if resource.getrlimit(limit) != value:
            resource.setrlimit(limit, value)


def _read_streams() -> list[tuple[Any, dict[str, Any]]]:
    names = ("encoding", "errors", "line_buffering")
    return [
        (stream, {name: getattr(stream, name) for name in names})
        for stream in (sys.stdout, sys.stderr)
        if hasattr(stream, "reconfigure") and not stream.closed
    ]


def _put_back_streams(streams: list[tuple[Any, dict[str, Any]]]) -> None:
    for stream, options in streams:
        stream.reconfigure(**options)


_PYTHON: tuple[_Setting, ...] = (
    _Setting(_read_folder, _put_back_folder),
    _Setting(whole_environment, _put_back_environment),
    _Setting(_read_umask, _put_back_umask),
    _Setting(sys.getrecursionlimit, sys.setrecursionlimit),
    _Setting(sys.getswitchinterval, sys.setswitchinterval),
    _Setting(sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    _Setting(sys.gettrace, sys.settrace),
    _Setting(sys.getprofile, sys.setprofile),
    _Setting(sys.get_asyncgen_hooks, lambda hooks: sys.set_asyncgen_hooks(*hooks)),
    _Setting(lambda: locale.setlocale(locale.LC_ALL), lambda v: locale.setlocale(locale.LC_ALL, v)),
    _Setting(gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    _Setting(gc.get_threshold, lambda threshold: gc.set_threshold(*threshold)),
    _Setting(
        lambda: decimal.getcontext().copy(), lambda context: decimal.setcontext(context.copy())
    ),
    _Setting(lambda: logging.root.manager.disable, logging.disable),
    _Setting(lambda: [signal.getsignal(number) for number in _SIGNALS], _put_back_signals),
    _Setting(
        lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        lambda mask: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
    ),
    _Setting(socket.getdefaulttimeout, socket.setdefaulttimeout),
    _Setting(
        faulthandler.is_enabled, lambda on: faulthandler.enable() if on else faulthandler.disable()
    ),
    _Setting(lambda: [resource.getrlimit(limit) for limit in _LIMITS], _put_back_limits),
    _Setting(
        lambda: os.getpriority(os.PRIO_PROCESS, 0),
        lambda priority: os.setpriority(os.PRIO_PROCESS, 0, priority),
    ),
    _Setting(threading.stack_size, threading.stack_size),
    _Setting(
        lambda: threading.main_thread().name,
        lambda name: setattr(threading.main_thread(), "name", name),
    ),
    _Setting(_read_streams, _put_back_streams),
)
if sys.platform == "linux":
    _PYTHON += (
        _Setting(lambda: os.sched_getaffinity(0), lambda cores: os.sched_setaffinity(0, cores)),
    )


def _of_multiprocessing(multiprocessing: Any) -> Iterator[_Setting]:
    yield _Setting(
        lambda: multiprocessing.get_start_method(allow_none=True),
        lambda method: multiprocessing.set_start_method(method, force=True),
    )


def _of_numpy(np: Any) -> Iterator[_Setting]:
    yield _Setting(np.geterr, lambda errors: np.seterr(**errors))
    yield _Setting(np.get_printoptions, lambda options: np.set_printoptions(**options))


def _of_torch(torch: Any) -> Iterator[_Setting]:
    yield _Setting(torch.get_default_dtype, torch.set_default_dtype)
    yield _Setting(torch.get_default_device, torch.set_default_device)
    yield _Setting(torch.is_grad_enabled, torch.set_grad_enabled)
    yield _Setting(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
    yield _Setting(torch.get_num_threads, torch.set_num_threads)
    yield _Setting(
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1]),
    )
    # no function of torch's returns it
    yield _Setting(lambda: _MIN_FLOAT[0] / 2 == 0, torch.set_flush_denormal)
    yield _Setting(torch.is_warn_always_enabled, torch.set_warn_always)
    yield _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    for name in ("enabled", "benchmark", "deterministic"):
        yield _Setting(
            lambda name=name: getattr(torch.backends.cudnn, name),  # type: ignore[misc]
            lambda value, name=name: setattr(torch.backends.cudnn, name, value),  # type: ignore[misc]
        )
    printing = torch._tensor_str.PRINT_OPTS
    yield _Setting(lambda: dict(vars(printing)), lambda options: vars(printing).update(options))


_LIBRARIES: dict[str, Callable[[Any], Iterator[_Setting]]] = {
    "multiprocessing": _of_multiprocessing,
    "numpy": _of_numpy,
    "torch": _of_torch,
}


@dataclass(frozen=True)
class ProcessState:
    """The settings of this process at one moment.

    Attributes:
        settings: How each is put back, with its value; those of a library that is imported later
            are added then.
        attributes: Module, name, and value.
        lists: Those of them that are lists, with their members.
        loggers: The loggers, with their own settings.
        threads: The threads that ran.
        children: The child processes.
    """

    settings: list[tuple[_Setting, Any]]
    attributes: list[tuple[str, str, Any]]
    lists: list[tuple[list[Any], tuple[Any, ...]]]
    loggers: dict[logging.Logger, tuple[Any, ...]]
    threads: frozenset[int | None]
    children: frozenset[int]

    def restore(self) -> bool:
        """Put everything back; return whether that was possible."""
        try:
            for name, attribute, value in self.attributes:
                setattr(sys.modules[name], attribute, value)
            for kept, members in self.lists:
                kept[:] = members
            for setting, value in self.settings:
                if setting.read() != value:
                    setting.put_back(value)
        except Exception:  # noqa: BLE001 - such as a limit that can only be lowered
            return False
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        warnings._filters_mutated()  # type: ignore[attr-defined]
        for logger in _loggers():
            _put_back_logger(logger, self.loggers.get(logger, _NEW_LOGGER))
        for thread in threading.enumerate():
            if type(thread).__name__ == "TMonitor":  # a progress bar of tqdm has started it
                thread.exit()  # type: ignore[attr-defined]
        torch = sys.modules.get("torch")
        return torch is None or not torch.is_inference_mode_enabled()

    def is_alone(self) -> bool:
        """Return whether every thread and child process that was started since has ended."""
        threads = {thread.ident for thread in threading.enumerate()}
        return threads <= self.threads and _children() <= self.children


def read_state() -> ProcessState:
    """Return the state as it is now."""
    attributes = [
        (name, attribute, getattr(sys.modules[name], attribute))
        for name, attributes in _ATTRIBUTES
        for attribute in attributes
        if hasattr(sys.modules.get(name), attribute)
    ]
    state = ProcessState(
        settings=[(setting, setting.read()) for setting in _PYTHON],
        attributes=attributes,
        lists=[(value, tuple(value)) for *_, value in attributes if isinstance(value, list)],
        loggers={logger: _read_logger(logger) for logger in _loggers()},
        threads=frozenset(thread.ident for thread in threading.enumerate()),
        children=_children(),
    )
    import wrapt  # imported already, as it seeds libraries

    for name, settings_of in _LIBRARIES.items():

        def add(
            library: Any, settings_of: Callable[[Any], Iterator[_Setting]] = settings_of
        ) -> None:
            state.settings.extend((setting, setting.read()) for setting in settings_of(library))

        if name in sys.modules:
            add(sys.modules[name])
        else:
            wrapt.register_post_import_hook(add, name)
    return state


def _loggers() -> Iterator[logging.Logger]:
    yield logging.root
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            yield logger


_NEW_LOGGER: tuple[Any, ...] = ((), (), logging.NOTSET, True, False)


def _read_logger(logger: logging.Logger) -> tuple[Any, ...]:
    settings = (logger.level, logger.propagate, logger.disabled)
    return (tuple(logger.handlers), tuple(logger.filters), *settings)


def _put_back_logger(logger: logging.Logger, state: tuple[Any, ...]) -> None:
    if state == _read_logger(logger):
        return
    handlers, filters, level, logger.propagate, logger.disabled = state
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.handlers[:], logger.filters[:] = handlers, filters
    logger.setLevel(level)


def _children() -> frozenset[int]:
    try:
        with open("/proc/thread-self/children") as file:  # noqa: PTH123 - a hot path
            return frozenset(map(int, file.read().split()))
    except OSError:
        import psutil  # where the kernel doesn't list them

        return frozenset(child.pid for child in psutil.Process().children())
