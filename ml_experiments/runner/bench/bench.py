"""Compares GPU types and values: starts benches, takes them up again, and reports on them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from ml_experiments.backends import open_backend
from ml_experiments.backends.base import Backend
from ml_experiments.backends.forecast import Forecast
from ml_experiments.backends.modal.gpus import DEFAULT_GPU_TYPE, parse_gpu
from ml_experiments.config.options import read_options
from ml_experiments.errors import BudgetError, ConfigError, Error
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.environment import secret_values
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runner.bench.cases import CaseRunner, CheckedCases, EndedRun, check_cases
from ml_experiments.runner.bench.folder import BenchFolder, BenchSpec, Case
from ml_experiments.runner.bench.measuring import BenchRow, is_whole, outputs_of, read_rows
from ml_experiments.runner.bench.options import BenchOptions
from ml_experiments.runner.bench.plot import draw_plot
from ml_experiments.runner.budget.reserving import Budget, above_limit, reserve
from ml_experiments.runner.options import as_recorded
from ml_experiments.runner.prepare import locate_experiment
from ml_experiments.runner.sweeps.search_space.space import Space, overrides_in, read_space
from ml_experiments.runs.result import RunResult, RunStatus
from ml_experiments.runs.spec import new_run_id
from ml_experiments.settings import runs_dir as default_runs_dir
from ml_experiments.settings import working_dir

_REPEAT = 3
_TIMEOUT_S = 3600.0
_DRAWN_SEEDS = 2**31

# the folder, the bench, and what it is going to cost
OnBegin = Callable[[BenchFolder, BenchSpec, Forecast | None], object]
OnRun = Callable[[EndedRun], object]
Approve = Callable[[str], bool]


@dataclass(frozen=True)
class BenchReport:
    """What a bench has measured.

    Example:
        ```python
        from ml_experiments import bench

        def square(n=2):
            return n * n

        if __name__ == "__main__":
            report = bench(square, repeat=1)
            print(report.is_whole, [row.status for row in report.rows])  # True ['measured']
        ```

    Attributes:
        bench_id: Its id; the tag `bench` of its runs.
        experiment: The class path.
        per: What one run puts out; None for the run itself.
        latency: The logged metric whose percentiles the rows have; None for the seconds.
        rows: One for each GPU type and set of values, the cheapest output first.
        stopped: Why it ended early, if it did.
        bench_dir: Its folder.
    """

    bench_id: str
    experiment: str
    per: str | None
    latency: str | None
    rows: tuple[BenchRow, ...]
    stopped: str | None
    bench_dir: Path

    @property
    def is_counted(self) -> bool:
        """Whether every row that was measured has a number for what it puts out."""
        return all(row.outputs is not None for row in self.rows if row.runs)

    @property
    def is_whole(self) -> bool:
        """Whether every row was measured, or ran out of memory."""
        return all(row.status in ("measured", "out of memory") for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "bench_id": self.bench_id,
            "experiment": self.experiment,
            "folder": str(self.bench_dir),
            "per": self.per,
            "latency": self.latency,
            "stopped": self.stopped,
            "rows": [row.to_dict() for row in self.rows],
        }

    def plot(self, file: Path | str) -> None:
        """Draw the cost of an output against speed, with the rows that no other row beats.

        Raises:
            PreflightError: If matplotlib is not installed.
            ConfigError: If there is nothing to draw, or the file can't be written.
        """
        draw_plot(self.rows, self.per, Path(file))


def bench(
    experiment: Callable[..., Any] | str,
    config: Mapping[str, Any] | None = None,
    *,
    vary: Mapping[str, Any] | Sequence[str] | None = None,
    backend: str | None = None,
    runs_dir: Path | None = None,
    backend_options: Mapping[str, Any] | None = None,
    **options: Unpack[BenchOptions],
) -> BenchReport:
    """Measure an experiment on GPU types, or on this machine, and with several values.

    Each case runs once to warm up and then `repeat` times, all in the same container or worker.
    With `setup_fields`, the experiment is set up once for them. With `launch`, each run has new
    processes.

    Example:
        ```python
        from ml_experiments import bench

        def train(batch_size=1):
            return {"samples": 10 * batch_size}

        if __name__ == "__main__":
            report = bench(train, vary={"batch_size": [1, 4]}, repeat=2, per="results.samples")
            print({row.overrides: row.outputs for row in report.rows}["batch_size=4",])  # 40.0
        ```

    Args:
        experiment: A class with `run()`, a function, or the import path of one.
        config: What all runs share of the config.
        vary: Names of fields, each with a list of values, a `range`, or a form such as
            `"int(1, 4)"`; or a list as on the command line: `["batch_size=1,4,16"]`.
        backend: The name of a backend; `modal` with `gpu`, else `local`.
        runs_dir: Where the run folders go; by default what the settings say.
        backend_options: Passed to the backend.
        **options: See `BenchOptions`.

    Raises:
        Error: If a case is not valid; nothing was started. What happens in the runs is in the
            rows.
    """
    if not isinstance(config or {}, Mapping):
        raise ConfigError(f"config is a dict of fields, not a {type(config).__name__}")
    space = None
    if vary:
        space = read_space((), data=vary) if isinstance(vary, Mapping) else read_space(vary)
    spec = plan_bench(
        experiment,
        space,
        fixed=tuple(overrides_in(config or {})),
        backend=backend,
        backend_options=backend_options,
        **options,
    )
    return run_bench(spec, runs_dir=runs_dir)


def plan_bench(
    experiment: Callable[..., Any] | str,
    space: Space | None,
    *,
    fixed: Sequence[str] = (),
    backend: str | None = None,
    backend_options: Mapping[str, Any] | None = None,
    **options: Unpack[BenchOptions],
) -> BenchSpec:
    """Check what is asked of a bench, as far as the experiment need not be known.

    Raises:
        Error: If a GPU type does not exist, or options do not go together.
    """
    given = read_options(BenchOptions, options, "bench")
    gpus = _gpus(given.pop("gpu", None), backend)
    backend = backend or ("modal" if gpus else "local")
    if backend == "slurm":
        raise ConfigError(
            "a bench measures runs that follow one another on one machine, and on Slurm each run "
            "is a job of its own; measure on a node, without --backend: srun --gres=gpu:a100:1 "
            "ml-experiments bench CLASS_PATH"
        )
    if given.get("max_cost") is not None:
        _check_cap(backend)
    if space is not None and space.endless:
        axis = space.endless[0]
        raise ConfigError(
            f"{axis.name} ({axis.describe()}) has no end of values; list those to compare: "
            f"{axis.name}={axis.low:g},{axis.high:g}"
        )
    location, _ = locate_experiment(experiment)
    seed = given.pop("seed", None)
    return BenchSpec(
        bench_id=new_run_id(),
        experiment=location,
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        gpus=gpus,
        fixed=tuple(fixed),
        axes=[] if space is None else space.to_dict(),
        backend=backend,
        backend_options=as_recorded(backend_options),
        seed=secrets.randbelow(_DRAWN_SEEDS) if seed is None else seed,
        working_dir=str(working_dir()),
        **{"repeat": _REPEAT, "timeout_s": _TIMEOUT_S, **given},
    )


def _check_cap(backend: str) -> None:
    if backend != "modal":
        raise ConfigError("max_cost caps what runs cost on Modal; here they cost nothing")


def _gpus(given: str | None, backend: str | None) -> tuple[str, ...]:
    """Return the GPU types to compare.

    Raises:
        GpuTypeError: If one does not exist.
        ConfigError: If they can't be chosen on the backend.
    """
    if given is None:
        return (DEFAULT_GPU_TYPE,) if backend == "modal" else ()
    gpus = tuple(str(choice) for choice in parse_gpu(given).choices)
    if backend not in (None, "modal"):
        raise ConfigError(
            f"GPU types can't be chosen on the {backend} backend, which uses this machine's own; "
            "leave --gpu out to measure it, or leave --backend out to compare them on Modal"
        )
    return gpus


def run_bench(
    spec: BenchSpec,
    *,
    runs_dir: Path | None = None,
    prefetch: bool = False,
    approve: Approve = lambda _question: True,
    on_begin: OnBegin = lambda _folder, _spec, _forecast: None,
    on_run: OnRun = lambda _ended: None,
) -> BenchReport:
    """Check all cases, make the bench's folder, run the cases, and report.

    Args:
        spec: The bench.
        runs_dir: Where the run folders go; by default what the settings say.
        prefetch: Whether to download the models that the configs name first.
        approve: Is asked where it may cost more than the setting `ask_above`.
        on_begin: Is called when all cases were checked, before the first run starts.
        on_run: Is called when a run has ended.
    """
    place = Path(runs_dir or default_runs_dir()).expanduser().resolve()
    with opened(spec) as backend:
        checked = check_bench(spec, backend, place)
        _ask(checked, approve)
        if prefetch:
            for model in checked.models:
                backend.prefetch(model, Observer(), checked.runs[0].spec)
        hidden = Redactor((*secret_values(), *checked.secrets))
        folder = BenchFolder.create(place, spec, hidden)
        with folder.locked():
            runner = CaseRunner(spec, folder, backend, spec.cases)
            on_begin(folder, spec, checked.forecast)
            return _run(runner, on_run)


def resume_bench(
    folder: BenchFolder,
    *,
    max_cost: float | None = None,
    approve: Approve = lambda _question: True,
    on_begin: OnBegin = lambda _folder, _spec, _forecast: None,
    on_run: OnRun = lambda _ended: None,
) -> BenchReport:
    """Run the cases again that were not measured to their end, and report.

    Args:
        folder: The bench.
        max_cost: Replaces the cap that it has, in US dollars; what it has cost so far counts.
        approve: See `run_bench`.
        on_begin: See `run_bench`.
        on_run: See `run_bench`.

    Raises:
        Error: If another process runs the bench, or its record had secrets taken out.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.locked())
        spec = folder.read_spec()
        if Redactor.MARK in str((spec.fixed, spec.axes, spec.tags, spec.backend_options)):
            raise Error(
                f"the config or the options of bench {spec.bench_id} held a secret, which was not "
                "recorded; start a new bench with it"
            )
        if max_cost is not None:
            _check_cap(spec.backend)
            spec = dataclasses.replace(spec, max_cost=max_cost)
        # relative paths in configs, and modules, are those of the folder it was started in
        with contextlib.suppress(OSError):
            stack.enter_context(contextlib.chdir(spec.working_dir))
        rows = {(row.gpu, row.overrides): row for row in read_rows(spec, folder)}
        cases = [c for c in spec.cases if not is_whole(spec, rows[c.gpu, c.overrides])]
        if not cases:
            on_begin(folder, spec, None)
            return report_on(folder)
        backend = stack.enter_context(opened(spec))
        checked = _check(spec, backend, cases, folder.runs_dir)
        _ask(checked, approve)
        if max_cost is not None:
            folder.write_spec(spec, Redactor(secret_values()))
        on_begin(folder, spec, checked.forecast)
        return _run(CaseRunner(spec, folder, backend, cases), on_run)


def report_on(
    folder: BenchFolder,
    *,
    per: str | None = None,
    latency: str | None = None,
    stopped: str | None = None,
    problems: Mapping[str, str] | None = None,
) -> BenchReport:
    """Return what a bench has measured, as its run folders say.

    Args:
        folder: The bench.
        per: What is counted instead of what the bench was started with.
        latency: The logged metric that is shown instead of that one.
        stopped: Why it ended early.
        problems: Why cases have no runs, by their keys.
    """
    spec = folder.read_spec()
    spec = dataclasses.replace(spec, per=per or spec.per, latency=latency or spec.latency)
    rows = tuple(read_rows(spec, folder, problems))
    return BenchReport(
        spec.bench_id, spec.experiment, spec.per, spec.latency, rows, stopped, folder.path
    )


def check_bench(spec: BenchSpec, backend: Backend, runs_dir: Path) -> CheckedCases:
    """Find every mistake in a bench that can be found before anything starts.

    Raises:
        Error: If a case could not work, or a cap has no room for a run of it.
    """
    return _check(spec, backend, spec.cases, runs_dir)


def _check(
    spec: BenchSpec, backend: Backend, cases: Sequence[Case], runs_dir: Path
) -> CheckedCases:
    checked = check_cases(spec, backend, cases)
    for run in checked.runs:
        if spec.per is not None and spec.per.startswith("config."):
            outputs_of(RunResult("", RunStatus.PENDING, ""), run.spec.config, spec.per)
        budget = Budget(spec.scope, spec.max_cost)
        reserve([run], backend, runs_dir, budget=budget, is_kept=False)
    return checked


def _run(runner: CaseRunner, on_run: OnRun) -> BenchReport:
    with contextlib.closing(runner.run()) as runs:
        for ended in runs:
            on_run(ended)
    return report_on(runner.folder, stopped=runner.stopped, problems=runner.problems)


def opened(spec: BenchSpec) -> Backend:
    """Return the backend of a bench."""
    options = dict(spec.backend_options)
    if spec.backend == "local":
        options["max_workers"] = 1  # the next run finds what the first has set up
    return open_backend(spec.backend, **options)


def _ask(checked: CheckedCases, approve: Approve) -> None:
    """Ask where a bench may cost more than the setting `ask_above`.

    Raises:
        BudgetError: If the answer is no.
    """
    above = None if checked.forecast is None else above_limit(checked.forecast, "the bench")
    if above is not None and not approve(above):
        raise BudgetError(f"{above}; nothing was started, and --yes starts it")
