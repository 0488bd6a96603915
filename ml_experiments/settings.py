"""The only reader of environment variables, and the home of default paths.

| environment variable | `[tool.ml-experiments]` | meaning | default |
|---|---|---|---|
| ML_EXPERIMENTS_RUNS_DIR | runs_dir | where run folders are written | ./runs |
| ML_EXPERIMENTS_INDEX_DIR | | indexes of runs, prices; may be deleted | ~/.cache/ml-experiments |
| ML_EXPERIMENTS_STATE_DIR | | the ledger of what runs cost | ~/.local/state/ml-experiments |
| ML_EXPERIMENTS_MAX_COST_PER_DAY | max_cost_per_day | US dollars for all runs of a day | no cap |
| ML_EXPERIMENTS_ASK_ABOVE | ask_above | commands ask before a run that may cost more | never |

An environment variable wins over pyproject.toml. The table of pyproject.toml is read from
the current folder or its nearest parent that has one; a relative path is relative to that file.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_experiments.errors import ConfigError

KNOWN_KEYS = ("runs_dir", "max_cost_per_day", "ask_above")


MAX_USD = 1_000_000  # more is a mistake, not a cap


def working_dir() -> Path:
    """Return the current folder.

    Raises:
        ConfigError: If it was deleted.
    """
    try:
        return Path.cwd()
    except OSError as e:
        raise ConfigError(
            f"the current folder can't be used ({e.strerror}), as when it was deleted; "
            "change to another one: cd"
        ) from e


def runs_dir() -> Path:
    """Return the folder that holds run folders."""
    from_environment = os.environ.get("ML_EXPERIMENTS_RUNS_DIR")
    if from_environment:
        return Path(from_environment).expanduser().resolve()
    found = _project_table()
    if found is not None and "runs_dir" in found[1]:
        folder, table = found
        return (folder / Path(str(table["runs_dir"])).expanduser()).resolve()
    return (working_dir() / "runs").resolve()


def index_dir() -> Path:
    """Return the folder of what may be deleted: indexes of runs folders, prices of a day."""
    own = os.environ.get("ML_EXPERIMENTS_INDEX_DIR")
    if own:
        return Path(own).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(caches).expanduser() / "ml-experiments"
    except RuntimeError:  # a user without a home
        return Path(os.devnull, "ml-experiments")


def state_dir() -> Path:
    """Return the folder of what must be kept for a user, such as the ledger.

    Raises:
        ConfigError: If the user has no home.
    """
    own = os.environ.get("ML_EXPERIMENTS_STATE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    states = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        return Path(states).expanduser() / "ml-experiments"
    except RuntimeError as e:
        raise ConfigError(
            "this user has no home folder, so set ML_EXPERIMENTS_STATE_DIR to a folder for the "
            "ledger of what runs cost"
        ) from e


def max_cost_per_day() -> float | None:
    """Return what all runs of a day, in UTC, may cost together in US dollars; None for no cap."""
    return _dollars("max_cost_per_day")


def ask_above() -> float | None:
    """Return the worst case in US dollars above which commands ask first; None for never."""
    return _dollars("ask_above")


def _dollars(key: str) -> float | None:
    """Return a setting that is an amount of US dollars.

    Raises:
        ConfigError: If it isn't a number above 0.
    """
    variable = f"ML_EXPERIMENTS_{key.upper()}"
    given: object = os.environ.get(variable) or None
    place = variable
    if given is None:
        found = _project_table()
        if found is None or key not in found[1]:
            return None
        place, given = f"{key} in {found[0] / 'pyproject.toml'}", found[1][key]
    try:
        usd = math.nan if isinstance(given, bool) else float(str(given))
    except ValueError:
        usd = math.nan
    if not 0 < usd <= MAX_USD:
        raise ConfigError(
            f"{place} is {given!r}; it must be a number of US dollars above 0 and up to "
            f"{MAX_USD:,}, such as 20 or 2.50"
        )
    return usd


def visible_cuda_devices() -> tuple[str, ...] | None:
    """Return the GPUs that CUDA_VISIBLE_DEVICES allows; None when it isn't set."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return None
    devices = tuple(device.strip() for device in value.split(",") if device.strip())
    return () if devices == ("-1",) else devices


def has_dumb_terminal() -> bool:
    """Return whether the terminal, if there is one, obeys no escape sequences."""
    return os.environ.get("TERM", "").lower() in ("dumb", "unknown")


def wants_colours() -> bool:
    """Return whether colours may be printed."""
    return not os.environ.get("NO_COLOR")


def modal_credentials_source() -> str | None:
    """Return where Modal's token is set, or None without one; it's read by modal itself."""
    if os.environ.get("MODAL_TOKEN_ID") and os.environ.get("MODAL_TOKEN_SECRET"):
        return "the environment"
    file = Path(os.environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml").expanduser()
    try:
        profiles = _toml(file)
    except (OSError, ValueError):
        return None
    has_token = any(isinstance(p, dict) and p.get("token_id") for p in profiles.values())
    return str(file) if has_token else None


def modal_account() -> str | None:
    """Return what tells one Modal token and server from another; None without a token."""
    if modal_credentials_source() is None:
        return None
    parts = [os.environ.get(f"MODAL_{name}", "") for name in ("SERVER_URL", "PROFILE", "TOKEN_ID")]
    if not parts[-1]:
        file = Path(os.environ.get("MODAL_CONFIG_PATH") or "~/.modal.toml").expanduser()
        parts.append(file.read_text(encoding="utf-8"))
    import hashlib  # imported late: each command would wait for it

    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def worker_environment(gpu: str | None, threads: int | None) -> dict[str, str]:
    """Return the environment of a local worker process: this one's, with its GPU and threads.

    Args:
        gpu: What CUDA_VISIBLE_DEVICES is set to, when there is one.
        threads: What OMP_NUM_THREADS is set to, unless the user has set it: workers that each
            start a thread per core wait for each other in busy loops.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # a thread that waits in a busy loop, as OpenMP's do, keeps its core from everybody else
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if threads is not None:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    return environment


def launcher_environment(count: int) -> dict[str, str]:
    """Return the environment of a launcher that starts processes on this machine, this one's.

    Args:
        count: How many they are; they share the cores, unless the user has set OMP_NUM_THREADS.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    return {"OMP_NUM_THREADS": str(threads), **os.environ}


def launched_rank() -> tuple[int, int, int]:
    """Return the rank of this process, its rank on this machine, and how many there are in all."""
    rank, local, count = map(os.environ.get, ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return int(rank or 0), int(local or 0), int(count or 1)


def slurm_configuration() -> str | None:
    """Return the file that SLURM_CONF names; None if it isn't set."""
    return os.environ.get("SLURM_CONF") or None


def slurm_job() -> tuple[str | None, int, int | None]:
    """Return the id of this process's Slurm job, how often it was restarted, and its cores."""
    names = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CPUS_ON_NODE")
    job, restarts, cpus = map(os.environ.get, names)
    return job, int(restarts or 0), int(cpus) if cpus else None


def use_cpu_with_accelerate() -> None:
    """Have Accelerate use the CPU in processes that this one starts."""
    os.environ["ACCELERATE_USE_CPU"] = "true"


def git_environment() -> dict[str, str]:
    """Return the environment of a git that looks at the folder it is told, and asks nothing."""
    # GIT_DIR and the like, set inside a hook, would lead to another repository
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or name.startswith("GIT_CONFIG_")
    }
    return {**kept, "LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0", "GIT_NO_LAZY_FETCH": "1"}


def is_emulated() -> bool:
    """Return whether this process is in a container of the local Modal server."""
    return os.environ.get("MODAL_REGION") == "emulator"


def whole_environment() -> dict[str, str]:
    """Return all variables; a Modal container's are its image's, and the values of its secrets."""
    return dict(os.environ)


def restore_environment(variables: Mapping[str, str]) -> None:
    """Bring the environment of this process back to what `whole_environment` has returned."""
    if os.environ != variables:
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)


def update_environment(previous: Mapping[str, str], current: Mapping[str, str]) -> None:
    """Change in this process what differs between two environments of another."""
    for name in previous.keys() - current.keys():
        os.environ.pop(name, None)
    os.environ.update({k: v for k, v in current.items() if previous.get(k) != v})


@contextmanager
def noted_variables(note: Callable[[str], object]) -> Iterator[None]:
    """Call a function with the name of each variable that is looked up in the block."""
    plain = type(os.environ)

    class Noted(plain):  # type: ignore[misc,valid-type]
        def __getitem__(self, key: str) -> str:
            note(key)
            value: str = super().__getitem__(key)
            return value

    os.environ.__class__ = Noted
    try:
        yield
    finally:
        os.environ.__class__ = plain


def _project_table() -> tuple[Path, dict[str, object]] | None:
    current = working_dir()
    for folder in (current, *current.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            status = file.stat()
            table = _tool_table(file, (status.st_ino, status.st_mtime_ns, status.st_size))
        except (OSError, ValueError) as e:
            raise ConfigError(f"{file} is not readable as TOML: {e}") from e
        settings = table.get("ml-experiments", {})
        unknown = sorted(set(settings) - set(KNOWN_KEYS))
        if unknown:
            raise ConfigError(
                f"{file}: [tool.ml-experiments] has unknown keys {unknown}; "
                f"known: {', '.join(KNOWN_KEYS)}"
            )
        return folder, settings
    return None


@functools.lru_cache(maxsize=8)
def _tool_table(file: Path, _stamp: tuple[int, ...]) -> dict[str, Any]:
    # each run reads the settings again, and parsing takes a millisecond
    tool: dict[str, Any] = _toml(file).get("tool", {})
    return tool


def _toml(file: Path) -> dict[str, Any]:
    """Read a file; what is wrong with its content is a ValueError."""
    text = file.read_text(encoding="utf-8")
    import tomllib  # imported late: most commands find no file

    return tomllib.loads(text)
