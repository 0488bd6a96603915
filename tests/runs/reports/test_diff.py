"""What differs between two runs, and what of it can explain their results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.provenance.git import describe_code
from ml_experiments.runs.reports.diff import diff_runs
from tests.support.git_repo import commit, make_repo
from tests.support.run_folders import write_run

ENVIRONMENT: dict[str, Any] = {"python": "3.11.7", "hostname": "a", "packages": {"torch": "2.6"}}


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def write(number: int, **given: Any) -> RunFolder:
        manifest = {"environment": ENVIRONMENT, **given.pop("manifest", {})}
        given.setdefault("results", {"loss": float(number)})
        return write_run(
            tmp_path / "runs", f"20260101-000000-000000{number}", manifest=manifest, **given
        )

    return write


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"config": {"a": {"b": 1}}}, ("config.a", "(none)", "{'b': 1}", "yes")),
        ({"config": {}, "seed": 7}, ("seed", "1", "7", "yes")),
        ({"experiment": "other.Train"}, ("experiment", "train.Train", "other.Train", "yes")),
        ({"gpu": "h100"}, ("gpu asked for", "none", "h100", "perhaps")),
        ({"backend": "modal"}, ("backend", "local", "modal", "perhaps")),
        ({"timeout_s": 3.0}, ("timeout_s", "none", "3", "no")),
        ({"backend_options": {"pip": ["x"]}}, ("option pip", "(none)", "['x']", "perhaps")),
        (
            {"manifest": {"environment": {**ENVIRONMENT, "packages": {"torch": "2.7"}}}},
            ("package torch", "2.6", "2.7", "perhaps"),
        ),
        (
            {"manifest": {"environment": {**ENVIRONMENT, "gpus": [{"name": "A10G"}]}}},
            ("gpu got", "none", "A10G", "perhaps"),
        ),
        (
            {"manifest": {"environment": {**ENVIRONMENT, "hostname": "b"}}},
            ("hostname", "a", "b", "no"),
        ),
        ({"name": "other", "tags": {"a": "b"}}, None),
    ],
)
def test_each_thing_that_differs_is_named(
    run: Any, given: dict[str, Any], expected: tuple[str, ...] | None
) -> None:
    found = diff_runs(run(1), run(2, **given))
    inputs = [dataclasses.astuple(difference) for difference in found.inputs]
    assert inputs == ([] if expected is None else [expected])
    assert [(d.path, d.first, d.second) for d in found.outcomes] == [("results.loss", "1", "2")]
    explains = expected[-1] if expected else "no"
    words = {"yes": "can explain", "perhaps": "may explain", "no": "nothing that was recorded"}
    assert words[explains] in found.explanation
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_nested_config_is_compared_value_by_value(run: Any) -> None:
    configs = [{"optim": {"lr": lr, "betas": [0.9, lr]}, "same": {"x": 1}} for lr in (1, 2)]
    found = diff_runs(run(1, config=configs[0]), run(2, config=configs[1]))
    assert [difference.what for difference in found.inputs] == [
        "config.optim.lr",
        "config.optim.betas",
    ]


def test_models_of_other_revisions_can_explain_a_difference(run: Any) -> None:
    models = [{"repo_id": "acme/m", "revision": revision} for revision in ("aaa", "bbb")]
    first, second = (run(n + 1, manifest={"cached_models": (models[n],)}) for n in (0, 1))
    (difference,) = diff_runs(first, second).inputs
    assert (difference.what, difference.explains) == ("model acme/m", "yes")
    unknown = run(3, manifest={"cached_models": None})
    assert diff_runs(first, unknown).inputs == ()


def test_equal_runs_are_said_to_be_so(run: Any) -> None:
    found = diff_runs(run(1, results={"a": 1}), run(2, results={"a": 1 + 1e-12}))
    assert found.explanation == "the results are the same"


def test_an_error_is_an_outcome(run: Any) -> None:
    found = diff_runs(run(1), run(2, status="error"))
    assert found.outcomes[0].path == "status"


def test_the_patch_of_the_code_is_shown(run: Any, tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", {"train.py": "lr = 1\n"})
    states = [describe_code(repo)]
    (repo / "train.py").write_text("lr = 2\n")
    states.append(describe_code(repo))
    commit(repo, {})
    states.append(describe_code(repo))
    (repo / "new.py").write_text("")
    states.append(describe_code(repo))
    folders = [run(n, manifest={"code": code}) for n, code in enumerate(states)]
    found = diff_runs(folders[0], folders[1])
    assert "-lr = 1\n+lr = 2\n" in str(found.patch)
    assert [(d.what, d.explains) for d in found.inputs] == [("code", "yes")]
    same = diff_runs(folders[1], folders[2])  # only committed meanwhile
    assert (same.patch, same.inputs) == ("", ())
    untracked = diff_runs(folders[2], folders[3])
    assert untracked.patch == ""
    assert "new.py" in str(untracked.code_problem)
    assert "code is unknown" in untracked.explanation
    gone = run(7, manifest={"code": {**states[0], "commit": "0" * 40}})
    lost = diff_runs(folders[0], gone)
    assert lost.patch is None
    assert [(d.what, d.explains) for d in lost.inputs] == [("code", "perhaps")]
    assert "git read-tree" in str(lost.code_problem)
