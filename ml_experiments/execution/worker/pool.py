"""What a backend keeps from run to run: a template for each experiment, and warm workers."""

from __future__ import annotations

import base64
import os
import pickle
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_experiments.errors import BackendError, ConfigError, ExperimentPathError
from ml_experiments.execution.worker.messages import Description, error_of
from ml_experiments.execution.worker.process import GuardProcess, TemplateProcess, WorkerProcess
from ml_experiments.execution.worker.starting import current_search_path
from ml_experiments.experiment.tracebacks import without_callers
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.records import parse_record
from ml_experiments.settings import worker_environment

_MAX_IDLE_TEMPLATES = 8
_NOWHERE = Path(os.devnull)


class Template:
    """A template process, and the worker in which its experiment is described."""

    def __init__(
        self,
        experiment: str,
        import_paths: tuple[str, ...],
        threads: int | None,
        search_path: tuple[str, ...],
        process: TemplateProcess | None = None,
    ) -> None:
        self._arguments = experiment, import_paths, threads, search_path
        self.process = process or TemplateProcess(*self._arguments)
        self.users = 0  # prepared runs that have not ended
        self._describer: WorkerProcess | None = None
        self._lock = threading.Lock()  # of the describer, which answers one at a time
        self._process_lock = threading.Lock()

    def ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """Return the answer of the describer; None if it has ended instead."""
        with self._lock:
            if self._describer is None:
                self._describer = self.process.start_guard(executes=False).start_worker(
                    _NOWHERE, None, (), None
                )
            self._describer.send(question)
            try:
                while True:
                    for answer in self._describer.read(1.0):
                        return answer
            except EOFError:
                return None

    def start_guard(self) -> GuardProcess:
        """Start a guard, and the process again that starts it, if that was killed."""
        with self._process_lock:
            if not self.process.is_alive:
                self.process.close()
                self.process = TemplateProcess(*self._arguments)
            return self.process.start_guard(executes=True)

    @property
    def exit_code(self) -> int | None:
        """What the describer, or the process that starts it, has ended with."""
        own = self._describer.exit_code if self._describer else None
        return self.process.exit_code if own is None else own

    def close(self) -> None:
        """End the processes."""
        self.process.close()


class TemplatePool:
    """Starts templates, keeps them, and replaces those whose source has changed.

    Args:
        threads: OMP_NUM_THREADS of workers, unless the user has set it.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = threads
        self._templates: OrderedDict[tuple[str, ...], Template] = OrderedDict()
        self._retired: list[Template] = []
        self._lock = threading.Lock()

    def describe(
        self,
        experiment: str,
        import_paths: tuple[str, ...],
        configs: Sequence[Any],
        seed: int,
        *,
        is_recorded: bool = False,
    ) -> tuple[list[Description | ConfigError], Template]:
        """Validate configs where the experiment is imported; see `describe_experiment`.

        The template counts as used until `release`.

        Returns:
            What is known of the experiment with each config, or why that is not valid.

        Raises:
            Error: If the experiment can't be imported.
            BackendError: If no process can be started.
        """
        question = {
            "describe": {
                "experiment": experiment,
                "import_paths": list(import_paths),
                "configs": [_pickled(config) for config in configs],
                "seed": seed,
                "is_recorded": is_recorded,
                "environment": worker_environment(None, self._threads),
            }
        }
        for _ in range(3):  # a source file may change again and again
            template = self.get(experiment, import_paths)
            try:
                answer = template.ask(question)
            except BackendError:
                self._retire(template)
                raise
            if answer is not None and "descriptions" in answer:
                return [_description_of(each) for each in answer["descriptions"]], template
            error = (
                None if answer is None or "problem" not in answer else error_of(answer["problem"])
            )
            printed = without_callers(template.process.output_tail()) if answer is None else ""
            self._retire(template)
            if answer is None:
                raise ExperimentPathError(
                    f"importing {experiment} or checking its config ended the process "
                    f"({_ended_with(template.exit_code)})" + (f":\n{printed}" if printed else "")
                )
            if error is not None:
                raise error
        raise ExperimentPathError(f"the source of {experiment} changes all the time")

    def get(self, experiment: str, import_paths: tuple[str, ...]) -> Template:
        """Return a template, started if need be; it counts as used until `release`."""
        search_path = current_search_path()
        key = _key(experiment, import_paths, search_path)
        with self._lock:
            template = self._templates.get(key)
            if template is not None and not template.process.is_alive:
                self._put_aside(key)
                template = None
            if template is None:
                self._make_room()
                template = Template(experiment, import_paths, self._threads, search_path)
                self._templates[key] = template
            self._templates.move_to_end(key)
            template.users += 1
            return template

    def adopt(
        self, experiment: str, import_paths: tuple[str, ...], process: TemplateProcess
    ) -> None:
        """Take over a process that was started early; see `start_template`."""
        search_path = current_search_path()
        template = Template(experiment, import_paths, self._threads, search_path, process)
        with self._lock:
            self._templates[_key(experiment, import_paths, search_path)] = template

    def release(self, template: Template) -> None:
        """Let a template be closed once no run uses it."""
        with self._lock:
            template.users -= 1
            self._close_unused()

    def close(self) -> None:
        """End all templates."""
        with self._lock:
            for template in (*self._templates.values(), *self._retired):
                template.close()
            self._templates.clear()
            self._retired.clear()

    def _retire(self, template: Template) -> None:
        with self._lock:
            template.users -= 1
            for key, known in list(self._templates.items()):
                if known is template:
                    self._put_aside(key)
            self._close_unused()

    def _make_room(self) -> None:
        idle = [key for key, template in self._templates.items() if template.users == 0]
        for key in idle[: len(self._templates) - _MAX_IDLE_TEMPLATES + 1]:
            self._put_aside(key)
        self._close_unused()

    def _put_aside(self, key: tuple[str, ...]) -> None:
        self._retired.append(self._templates.pop(key))

    def _close_unused(self) -> None:
        for template in [template for template in self._retired if template.users <= 0]:
            self._retired.remove(template)
            template.close()


class WorkerSlot:
    """Starts a worker for each run; keeps one whose set-up serves the next run too."""

    def __init__(self, gpu: str | None = None) -> None:
        self.gpu = gpu
        self._worker: WorkerProcess | None = None
        self._guard: GuardProcess | None = None  # of its template
        self._setup_key: str | None = None  # of its worker
        self._template: Template | None = None

    def score(self, setup_key: str | None) -> tuple[bool, ...]:
        """Return how well the slot suits a run: the greater, the less has to be done anew."""
        return setup_key is not None and self._setup_key == setup_key, self._worker is None

    def worker_for(
        self,
        template: Template,
        setup_key: str | None,
        output: Path,
        folder: RunFolder,
        secrets: tuple[str, ...],
    ) -> WorkerProcess:
        """Return a worker for a run: the warm one, unless it can't even check the config."""
        may_serve = setup_key is not None and self._template is template
        if self._worker is not None and not may_serve:
            self.close_worker()
        if self._worker is not None and self._worker.wait(0):  # it died while it was idle
            self.drop()
        if self._worker is None:
            guard = self._guard_of(template)
            self._worker = guard.start_worker(output, folder.path, secrets, self.gpu)
            self._setup_key = setup_key
        return self._worker

    def drop(self) -> None:
        """End the worker at once."""
        if self._worker is not None:
            self._worker.kill()
            self._worker, self._setup_key = None, None

    def close(self) -> None:
        """End an idle worker, and what starts workers."""
        self.close_worker()
        if self._guard is not None:
            self._guard.close()
            self._guard, self._template = None, None

    def close_worker(self) -> None:
        """End an idle worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker, self._setup_key = None, None

    def _guard_of(self, template: Template) -> GuardProcess:
        """Return what starts the workers of a template, started if need be."""
        if self._guard is None or self._template is not template or not self._guard.is_alive:
            self.close()
            self._guard, self._template = template.start_guard(), template
        return self._guard


def _key(
    experiment: str, import_paths: tuple[str, ...], search_path: tuple[str, ...]
) -> tuple[str, ...]:
    module = experiment.rpartition(":")[0] or experiment.rpartition(".")[0]
    return module, *import_paths, *search_path


def _description_of(answer: dict[str, Any]) -> Description | ConfigError:
    if "problem" not in answer:
        return parse_record(Description, answer)
    error = error_of(answer["problem"])
    assert isinstance(error, ConfigError)
    return error


def _pickled(config: Any) -> str:
    try:
        return base64.b64encode(pickle.dumps(config)).decode("ascii")
    except Exception as e:
        raise ConfigError(f"the config can't travel to the experiment's process: {e}") from e


def _ended_with(code: int | None) -> str:
    if code is None:
        return "it was killed"
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
