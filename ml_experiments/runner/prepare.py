"""Preflight: from an experiment and a config to a prepared run."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.util
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType
from typing import Any, Unpack

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend
from ml_experiments.config.options import read_options
from ml_experiments.config.scalars import LoadedConfig
from ml_experiments.errors import BackendError, ConfigError, PreflightError
from ml_experiments.execution.launch.preparing import check_nodes
from ml_experiments.execution.observer import Observer
from ml_experiments.experiment.by_value import FILE_NAME, is_without_file, source_of
from ml_experiments.experiment.importing import check_experiment, path_of, refuse_while_importing
from ml_experiments.experiment.reference import locate
from ml_experiments.redaction.environment import secret_values
from ml_experiments.runner.display.observers import check_url, guarded
from ml_experiments.runner.escalation import check_attempts, ladder_of, on_modal
from ml_experiments.runner.options import RunOptions
from ml_experiments.runner.reuse.describing import with_fingerprint
from ml_experiments.runs.spec import PreparedRun, RunSpec, check_run_id, new_run_id
from ml_experiments.serialization.scratch import ScratchFolder

_DRAWN_SEEDS = 2**31
# until a run folder has a copy
_NOTEBOOKS = functools.cache(ScratchFolder)
_DIFFUSION = ("torch", "diffusers", "transformers", "safetensors", "accelerate", "PIL")
# ready experiment -> the extra with what it imports while it runs
_EXTRAS = {
    "text_to_image": ("diffusion", _DIFFUSION),
    "tiny_digits": ("diffusion,training", (*_DIFFUSION, "sklearn")),
}


def prepare_run(
    experiment: Callable[..., Any] | str,
    config: Mapping[str, Any] | None = None,
    *,
    backend: Backend,
    **options: Unpack[RunOptions],
) -> PreparedRun:
    """Find every mistake that can be found before anything starts; see `run_experiment`.

    Example:
        ```python
        from ml_experiments import LocalBackend, prepare_run

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            with LocalBackend() as backend:
                prepared = prepare_run(square, {"n": 3}, backend=backend, seed=1)
                print(prepared.spec.config, prepared.spec.seed)  # {'n': 3} 1
        ```

    Raises:
        Error: If the run could not work; the message says what to do.
    """
    refuse_while_importing()
    if not isinstance(backend, Backend):
        raise BackendError(
            f"backend is {backend!r}, which is not open; write: with LocalBackend() as backend:"
        )
    asked = read_options(RunOptions, options, "run_experiment")
    seed = asked.get("seed")
    check_attempts(asked, backend.name)
    check_nodes(asked.get("nodes", 1), asked.get("launch"), backend.name)
    run_id = asked.get("run_id")
    if run_id is not None:
        check_run_id(run_id)
    notify = asked.get("notify")
    if notify is not None:
        check_url(notify)
    path, import_paths = locate_experiment(experiment)
    if backend.name != "modal":  # containers have them
        _check_extras(path)
    drawn = secrets.randbelow(_DRAWN_SEEDS) if seed is None else seed
    description, template = backend.describe(path, import_paths, _plain(config), drawn)
    spec = RunSpec(
        run_id=run_id or new_run_id(),
        experiment=path,
        config=description.config,
        seed=drawn,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        backend=backend.name,
        gpu=asked.get("gpu"),
        launch=asked.get("launch"),
        nproc_per_node=asked.get("nproc_per_node"),
        nodes=asked.get("nodes", 1),
        timeout_s=asked.get("timeout_s"),
        max_cost=asked.get("max_cost"),
        retries=asked.get("retries", 0),
        escalate=ladder_of(asked.get("escalate")),
        escalate_to=asked.get("escalate_to"),
        name=asked.get("name"),
        tags=dict(asked.get("tags", {})),
        import_paths=import_paths,
    )
    run = PreparedRun(
        spec,
        (*secret_values(), *description.secrets),
        setup_key=description.setup_key,
        requirements=description.requirements,
        hub_models=description.hub_models,
        template=template,
        notify=notify,
    )
    if spec.escalate_to is not None:  # found now, not after hours here
        with open_backend("modal") as there:
            there.check_description(description)
            there.prepare(dataclasses.replace(run, spec=on_modal(spec), template=None))
    prepared = backend.prepare(run)
    if spec.max_cost is not None and prepared.forecast is None and spec.escalate_to is None:
        raise ConfigError(
            f"max_cost is a cap for runs on Modal; on the {backend.name} backend a run costs "
            "nothing, so leave it out"
        )
    prepared = dataclasses.replace(
        prepared,
        reuses=asked.get("reuse", False),
        takes_any_seed=seed is None,
        has_own_id=run_id is not None,
    )
    return with_fingerprint(prepared, backend)


def _check_extras(path: str) -> None:
    """Make sure that what a ready experiment imports while it runs is installed.

    Raises:
        PreflightError: If not.
    """
    for task, (extra, modules) in _EXTRAS.items():
        if not path.startswith(f"ml_experiments.tasks.{task}."):
            continue
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise PreflightError(
                f"{path} needs {', '.join(missing)}, which is not installed here; install it "
                f"with: pip install 'ml_experiments[{extra}]'"
            )


def _plain(config: Any) -> Any:
    """Return a config as fields: the class of an instance may have another name elsewhere."""
    if config is None:
        return {}
    if type(config) in (dict, LoadedConfig):
        return config
    # imported late: pydantic is a third of what a command imports, and its config is no instance
    from ml_experiments.config.given import read_fields
    from ml_experiments.experiment.base import is_config_class

    is_instance = is_config_class(type(config))
    return read_fields(config, type(config), "the experiment") if is_instance else config


def _file_for(experiment: Callable[..., Any]) -> Path:
    """Write an experiment of a notebook to a file; return that."""
    check_experiment(experiment, experiment.__qualname__)
    source = source_of(experiment, secret_values())
    digest = hashlib.sha256(source.encode()).hexdigest()[:16]
    file = Path(_NOTEBOOKS().name, digest, FILE_NAME)
    if not file.exists():
        file.parent.mkdir(parents=True)
        file.write_text(source, encoding="utf-8")
    return file


def prefetch_models(
    prepared: PreparedRun, *, backend: Backend, observer: Observer | None = None
) -> tuple[str, ...]:
    """Download the models that a run's config names, before its clock starts; return their names.

    Raises:
        CacheError: If one can't be downloaded; nothing was started.
    """
    spec, models = prepared.spec, prepared.hub_models
    for model in models:
        backend.prefetch(model, guarded(observer), spec)
    return models


def locate_experiment(experiment: Callable[..., Any] | str) -> tuple[str, tuple[str, ...]]:
    """Return the class path, and the folders to import it from, the current one included."""
    if isinstance(experiment, str):
        return locate(experiment)
    if not isinstance(experiment, type | FunctionType):  # an instance has no name to import
        check_experiment(experiment, f"{experiment!r:.80}")
    if is_without_file(experiment):
        return locate(f"{_file_for(experiment)}:{experiment.__name__}")
    path, found = path_of(experiment)
    path, folders = locate(path)
    return path, folders if found is None else tuple(dict.fromkeys([found, *folders]))
