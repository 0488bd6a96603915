"""Two runs: what differs in all that they depend on, and which of it can explain their results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.checkout import CodeNotFoundError, CodeStore, root_of
from ml_experiments.runs.reports.values import (
    MISSING,
    compare_metrics,
    compare_results,
    is_same,
    shown,
)
from ml_experiments.runs.result import RunResult
from ml_experiments.runs.spec import RunSpec

# whether a difference can explain another result
YES, PERHAPS, NO = "yes", "perhaps", "no"
DEFAULT_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Difference:
    """Something that two runs depend on and that is not the same."""

    what: str
    first: str
    second: str
    explains: str


@dataclass(frozen=True)
class Outcome:
    """Something that two runs came to and that is not the same, as it is shown."""

    path: str
    first: str
    second: str


@dataclass(frozen=True)
class RunDiff:
    """What differs between two runs.

    Attributes:
        inputs: What they depend on.
        outcomes: Their status, results, and the first step at which each metric differs.
        patch: The code of the second against the first; None if it can't be brought back.
        code_problem: Why not, or what of the code was not recorded.
    """

    runs: tuple[str, str]
    inputs: tuple[Difference, ...]
    outcomes: tuple[Outcome, ...]
    patch: str | None
    code_problem: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return the difference as JSON."""
        return asdict(self)

    @property
    def explanation(self) -> str:
        """What can explain the difference, in a sentence."""
        if not self.outcomes:
            return "the results are the same"
        for explains, verb in ((YES, "can explain"), (PERHAPS, "may explain")):
            found = [d.what for d in self.inputs if d.explains == explains]
            if found:
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                return f"{', '.join(found[:5])}{more} {verb} the difference"
        unknown = f", but the code is unknown: {self.code_problem}" if self.code_problem else ""
        return (
            f"nothing that was recorded explains the difference{unknown}; it may be data that is "
            "not in the cache, time, or an operation that is not deterministic"
        )


def diff_runs(first: RunFolder, second: RunFolder, tolerance: float = DEFAULT_TOLERANCE) -> RunDiff:
    """Return what differs between two runs.

    Args:
        first: One run folder.
        second: The other.
        tolerance: How much numbers of results and metrics may differ.

    Raises:
        RunFolderError: If a file of a folder is not readable.
    """
    specs = first.read_spec(), second.read_spec()
    manifests = first.read_manifest(), second.read_manifest()
    outcomes = first.outcome(), second.outcome()
    patch, problem = _patch(manifests[0].code, manifests[1].code)
    inputs = (
        *_code(manifests, patch),
        *_spec(*specs),
        *_environment(*manifests),
        *_models(*manifests),
    )
    return RunDiff(
        (specs[0].run_id, specs[1].run_id),
        inputs,
        tuple(_outcomes(*outcomes, tolerance)),
        patch,
        problem,
    )


def _patch(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Return the patch from one code state to another, and what is wrong with it."""
    untracked = sorted({*first.get("untracked", ()), *second.get("untracked", ())})
    note = None
    if untracked:
        note = f"files that git does not track were not recorded: {', '.join(untracked[:3])}"
        note += f" and {len(untracked) - 3} more" if len(untracked) > 3 else ""
    if first.get("commit") and _state(first) == _state(second):
        return "", note
    root = root_of(second) or root_of(first)
    if root is None:
        return None, "the runs recorded no git commit"
    try:
        with CodeStore.open(root) as store:
            return store.diff(store.tree(first), store.tree(second)), note
    except CodeNotFoundError as e:
        return None, str(e)


def _state(code: Mapping[str, Any]) -> tuple[Any, ...]:
    return code.get("commit"), code.get("diff_sha256"), code.get("submodules")


def _code(manifests: tuple[Manifest, Manifest], patch: str | None) -> Iterator[Difference]:
    codes = [manifest.code for manifest in manifests]
    if patch == "" and codes[0].get("submodules") == codes[1].get("submodules"):
        return
    if not any(code.get("commit") for code in codes):
        return
    states = []
    for code in codes:
        commit = str(code.get("commit") or MISSING)[:12]
        states.append(f"{commit} + changes" if code.get("diff_sha256") else commit)
    yield Difference("code", states[0], states[1], YES if patch else PERHAPS)


def _spec(first: RunSpec, second: RunSpec) -> Iterator[Difference]:
    yield from compare_fields("config.", first.config, second.config, YES)
    experiments = [_without_folder(spec.experiment) for spec in (first, second)]
    if experiments[0] != experiments[1]:
        yield Difference("experiment", experiments[0], experiments[1], YES)
    for name, explains in (
        ("seed", YES),
        ("backend", PERHAPS),
        ("gpu", PERHAPS),
        ("launch", PERHAPS),
        ("nproc_per_node", YES),
        ("nodes", YES),
        ("timeout_s", NO),
    ):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            what = "gpu asked for" if name == "gpu" else name
            yield Difference(what, shown(one), shown(other), explains)
    yield from compare_fields("option ", first.backend_options, second.backend_options, PERHAPS)


def _without_folder(experiment: str) -> str:
    """Return an import path; what a file holds is compared as code, wherever it is."""
    location, colon, name = experiment.rpartition(":")
    return f"{Path(location).name}{colon}{name}"


def _environment(first: Manifest, second: Manifest) -> Iterator[Difference]:
    one, other = first.environment, second.environment
    if not one or not other:
        return  # a run that never started, for example
    gpus = [_gpus(environment) for environment in (one, other)]
    if gpus[0] != gpus[1]:
        yield Difference("gpu got", gpus[0], gpus[1], PERHAPS)
    for name, explains in (
        ("python", PERHAPS),
        ("torch_cuda", PERHAPS),
        ("driver_cuda", PERHAPS),
        ("platform", PERHAPS),
        ("cpu_count", PERHAPS),
        ("hostname", NO),
    ):
        if one.get(name) != other.get(name):
            yield Difference(name, shown(one.get(name)), shown(other.get(name)), explains)
    packages = [environment.get("packages") or {} for environment in (one, other)]
    yield from compare_fields("package ", packages[0], packages[1], PERHAPS)


def _gpus(environment: Mapping[str, Any]) -> str:
    names = [str(gpu.get("name")) for gpu in environment.get("gpus", ())]
    return ", ".join(names) or "none"


def _models(first: Manifest, second: Manifest) -> Iterator[Difference]:
    """Yield the models whose revisions differ, among those that both runs recorded."""
    if first.cached_models is None or second.cached_models is None:
        return
    used = [
        {str(model.get("repo_id")): model.get("revision") for model in models}
        for models in (first.cached_models, second.cached_models)
    ]
    yield from compare_fields("model ", used[0], used[1], YES)


def compare_fields(
    start: str, first: Mapping[str, Any], second: Mapping[str, Any], explains: str
) -> Iterator[Difference]:
    """Yield what differs between two objects; `start` goes before the name of each field."""
    for name in dict.fromkeys((*first, *second)):
        one, other = first.get(name, MISSING), second.get(name, MISSING)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from compare_fields(f"{start}{name}.", one, other, explains)
        elif not is_same(one, other, 0.0):
            yield Difference(f"{start}{name}", shown(one), shown(other), explains)


def _outcomes(first: RunResult, second: RunResult, tolerance: float) -> Iterator[Outcome]:
    if first.status != second.status:
        yield Outcome("status", str(first.status), str(second.status))
    errors = [f"{e.type}: {e.message}" if e else "none" for e in (first.error, second.error)]
    if errors[0] != errors[1]:
        yield Outcome("error", shown(errors[0]), shown(errors[1]))
    for value in compare_results(first, second, tolerance)[1]:
        yield Outcome(value.name, shown(value.first), shown(value.second))
    named: set[str] = set()
    for value in compare_metrics(first, second, tolerance)[1]:
        if value.name not in named:  # the first step at which it differs
            named.add(value.name)
            place = "" if value.step is None else f" at step {value.step}"
            path = f"metrics.{value.name}{place}"
            yield Outcome(path, shown(value.first), shown(value.second))
