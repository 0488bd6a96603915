"""Run folders whose files were cut short, damaged or replaced."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import math
import re
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_experiments import LocalBackend, current_run, run_experiment
from ml_experiments.cli.main import main
from ml_experiments.errors import RunFolderError
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.manifest import Manifest
from ml_experiments.runs.provenance.processes import this_process
from ml_experiments.runs.registry import RunRegistry
from ml_experiments.runs.result import ErrorKind, RunError, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from ml_experiments.serialization.typed_json import Descriptor
from ml_experiments.serialization.writing import encode
from tests.support.experiments import Ends, Fit

FILES = ("spec.json", "manifest.json", "result.json", "metrics.jsonl", "log.txt")
MARK = Redactor.MARK
COMMANDS = (
    ("list",),
    ("list", "--json"),
    ("show", "last"),
    ("show", "last", "--json"),
    ("show", "last", "--log"),
)


@pytest.fixture(scope="module")
def three_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs that succeeded, failed, and are going on."""
    folder = tmp_path_factory.mktemp("three")
    with LocalBackend() as backend:
        for how in ("fails", "succeeds", "goes on"):
            target, config = (Ends, {"how": "value_error"}) if how == "fails" else (Fit, {})
            result = run_experiment(
                target, config, backend=backend, runs_dir=folder / how, name=f"one that {how}"
            )
            assert result.run_dir is not None
            if how == "goes on":
                (result.run_dir / "result.json").unlink()
                manifest = json.loads((result.run_dir / "manifest.json").read_text())
                manifest = {
                    **manifest,
                    "process": asdict(this_process()),
                    "modal": {"app_url": "x"},
                }
                (result.run_dir / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def folder(three_runs: Path, tmp_path: Path) -> RunFolder:
    shutil.copytree(three_runs / "succeeds", tmp_path / "runs")
    return RunFolder(next((tmp_path / "runs").glob("2*")))


def call(runs_dir: Path, *arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout and stderr of `ml-experiments runs`; an exception passes."""
    # as strict as a terminal's: what can't be encoded raises
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    warnings = logging.StreamHandler(streams[1])
    logging.getLogger("ml_experiments").addHandler(warnings)
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            patch.setenv("ML_EXPERIMENTS_RUNS_DIR", str(runs_dir))
            with pytest.raises(SystemExit) as ended:
                main(["runs", *arguments])
    finally:
        logging.getLogger("ml_experiments").removeHandler(warnings)
    printed = []
    for stream in streams:
        stream.flush()
        printed.append(stream.buffer.getvalue().decode(errors="replace"))  # type: ignore[attr-defined]
    assert isinstance(ended.value.code, int)
    return ended.value.code, *printed


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} in what should be strict JSON")


def check_commands(runs_dir: Path, damaged: str) -> None:
    for command in COMMANDS:
        code, out, err = call(runs_dir, *command)
        if command[0] == "list":
            assert code == 0
        elif code != 0:
            assert code == 2
            assert damaged in err
        if "--json" in command and code == 0:
            json.loads(out, parse_constant=refuse)


def test_metrics_after_a_line_that_was_cut_are_kept(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    before = list(folder.read_metrics())
    assert [m["step"] for m in before] == [0, 1, 2]
    whole = folder.metrics_file.read_bytes()
    folder.metrics_file.write_bytes(whole[:-5])
    assert list(folder.read_metrics()) == before[:2]
    assert caplog.text == ""  # a line that is just being written looks the same
    with folder.open_metrics() as file:
        file.write(json.dumps(before[2]) + "\n")
        assert list(folder.read_metrics()) == before  # it's written line by line
    assert list(folder.read_metrics()) == before
    assert (
        "metrics.jsonl: 1 lines are damaged and were left out, the first is line 3" in caplog.text
    )
    code, out, _ = call(folder.path.parent, "show", "last", "--json")
    assert code == 0
    assert json.loads(out)["metrics"] == before


def test_opening_metrics_adds_nothing_to_a_file_that_ends_well(folder: RunFolder) -> None:
    before = folder.metrics_file.read_bytes()
    folder.open_metrics().close()
    assert folder.metrics_file.read_bytes() == before
    folder.metrics_file.unlink()
    folder.open_metrics().close()
    assert folder.metrics_file.read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    ["[1]", "NaN", '{"loss": NaN}', '{"loss": 1e999}', "[" * 100_000, "\x00", "{" + "}" * 3, "1"],
)
def test_a_metrics_line_that_is_no_strict_json_object_is_left_out(
    folder: RunFolder, line: str
) -> None:
    before = list(folder.read_metrics())
    with folder.open_metrics() as file:
        file.write(f'{line}\n{{"step": 9}}\n')
    assert list(folder.read_metrics()) == [*before, {"step": 9}]
    code, out, err = call(folder.path.parent, "show", "last", "--json")
    assert code == 0
    json.loads(out, parse_constant=refuse)
    assert f"{folder.metrics_file}: 1 lines are damaged" in err


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("spec.json", '{"run_id": "1"}', "'experiment' is missing"),
        ("spec.json", "[" * 100_000, "recursion"),
        ("spec.json", {"config": "text"}, "config is a str"),
        ("spec.json", {"experiment": 5}, "experiment is a int"),
        ("spec.json", {"import_paths": "text"}, "import_paths is a str"),
        ("result.json", {"timings": {"total_s": "long"}}, r"timings is \{'total_s': 'long'\}"),
        ("result.json", {"timings": []}, "timings is a list"),
        ("result.json", {"cost": {"actual_usd": None}}, r"cost is \{'actual_usd': None\}"),
        ("result.json", {"environment": {"peak_memory_bytes": "much"}}, "peak_memory_bytes"),
        (
            "result.json",
            {"artifacts": [{"path": "a", "size_bytes": "b", "media_type": ""}]},
            "size",
        ),
        (
            "result.json",
            {"error": {"kind": "import", "type": "E", "message": 4}},
            "message is a int",
        ),
    ],
)
def test_a_record_with_a_value_of_the_wrong_kind_is_named(
    folder: RunFolder, file: str, content: Any, problem: str
) -> None:
    path = folder.path / file
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    path.write_text(content)
    with pytest.raises(RunFolderError, match=problem) as raised:
        folder.read_spec() if file == "spec.json" else folder.read_result()
    assert str(path) in str(raised.value)
    check_commands(folder.path.parent, file)
    (row,) = json.loads(call(folder.path.parent, "list", "--json")[1])
    assert str(path) in row["problem"]


def test_damaged_results_are_named_when_they_are_looked_at(folder: RunFolder) -> None:
    damaged = {"results": {"$type": "date", "value": "soon"}}
    record = {**json.loads(folder.result_file.read_text()), **damaged}
    folder.result_file.write_text(json.dumps(record))
    result = folder.read_result()
    assert result.to_dict()["results"] == damaged["results"]
    with pytest.raises(RunFolderError, match="damaged date") as raised:
        _ = result.results
    assert str(folder.result_file) in str(raised.value)
    check_commands(folder.path.parent, "result.json")


@pytest.mark.parametrize(
    "change",
    [
        {"process": {"hostname": "here"}},
        {"process": {"hostname": "here", "pid": "many"}},
        {"process": {"hostname": "here", "pid": -1}},
        {"process": [1]},
        {"modal": "text"},
        {"client": 5},
    ],
)
def test_a_manifest_with_a_value_of_the_wrong_kind_is_named(
    folder: RunFolder, change: dict[str, Any]
) -> None:
    file = folder.path / "manifest.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunFolderError, match=r"manifest\.json is not a run's manifest"):
        folder.read_manifest()
    folder.result_file.unlink()
    check_commands(folder.path.parent, "manifest.json")


def test_text_that_looks_like_markup_or_is_not_unicode_is_shown(folder: RunFolder) -> None:
    file = folder.path / "spec.json"
    odd = {"name": "[/red] \ud800", "experiment": "pkg:[bold]X[/]"}
    file.write_text(json.dumps({**json.loads(file.read_text()), **odd}))
    folder.result_file.write_text(
        json.dumps({**json.loads(folder.result_file.read_text()), "results": {"x": "\ud800"}})
    )
    code, out, _ = call(folder.path.parent, "list")
    assert code == 0
    assert "[/red]" in out
    code, out, _ = call(folder.path.parent, "show", "last")
    assert code == 0
    assert "\\ud800" in out


def test_a_log_that_is_gone_is_named(folder: RunFolder) -> None:
    folder.log_file.unlink()
    code, _, err = call(folder.path.parent, "show", "last", "--log")
    assert code == 2
    assert f"{folder.log_file} is not readable" in err


# words of the records themselves, of their file names and of what a run prints
WORDS = (
    *("experiment", "artifacts", "success", "error", "local", "password", "results", "metrics"),
    *("result.json", "spec.json", "manifest.json", "log.txt", "config", "message", "traceback"),
    *("20261125", "20261125-101112-1234abc", "pkg.module:Train", "diff", "untracked", "$type"),
    *("ndarray", "dtype", "path", "float64", "items", "value", "redacted", "<redacted>", "null"),
    *("artifacts/results/x.npy", "weights", "commit", "branch", "process", "hostname", "pending"),
    *(
        "application/octet-stream",
        "import",
        "total_s",
        "running",
        "first.txt",
        "/",
        ".",
        "results.",
    ),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    secrets=st.lists(
        st.sampled_from(WORDS) | st.text(min_size=1, max_size=30), min_size=1, max_size=3
    ),
    has_failed=st.booleans(),
)
def test_records_mean_the_same_whatever_word_is_a_secret(
    secrets: list[str], has_failed: bool
) -> None:
    user_data = {"weights": np.ones(2), 1: secrets[0], "success": [*secrets, math.inf], "x": b"b"}
    with tempfile.TemporaryDirectory() as runs_dir:
        redactor = Redactor(secrets)
        spec = RunSpec(
            run_id="20261125-101112-1234abc",
            experiment="pkg.module:Train",
            config={"password": secrets[0], "results": {"success": [secrets[-1], 1.5]}},
            seed=3,
            created_at="2026-11-25T10:11:12.000+00:00",
            timeout_s=60,
            tags={"experiment": secrets[0]},
            import_paths=("/home/artifacts",),
        )
        code = {"commit": "1234abc", "branch": "experiment", "dirty": True, "diff": secrets[0]}
        manifest = Manifest(spec.run_id, 3, code, client=this_process(), process=this_process())
        folder = RunFolder.create(Path(runs_dir), spec, manifest, redactor)
        folder.artifacts_dir.mkdir()
        for name in ("first.txt", "weights", f"a {re.sub('[^a-z]', '', secrets[0])}"):
            (folder.artifacts_dir / name).write_text(name)
        files = [folder.artifacts_dir / "first.txt", folder.artifacts_dir / "weights"]
        results, problems = encode(
            [user_data, files], folder.artifacts_dir, "results", redactor.redact_text
        )
        assert problems == ()
        error = RunError(ErrorKind.EXPERIMENT, "ValueError", f"no {secrets[0]}")
        result = RunResult(
            run_id=spec.run_id,
            status=RunStatus.ERROR if has_failed else RunStatus.SUCCESS,
            experiment_class=spec.experiment,
            results_json=results,
            error=error if has_failed else None,
            artifacts=folder.list_artifacts(),
            timings={"total_s": 1},
            environment={"peak_memory_bytes": 3},
        )
        written = folder.write_result(result, redactor)

        read = folder.read_spec()
        same = {"config": spec.config, "tags": spec.tags}
        assert dataclasses.replace(read, **same) == spec  # type: ignore[arg-type]
        assert list(read.config) == ["password", "results"]
        assert list(read.config["results"]) == ["success"]
        assert read.config["password"] == read.tags["experiment"] == MARK
        read_manifest = folder.read_manifest()
        assert read_manifest.code | {"diff": ""} == code | {"diff": ""}
        assert read_manifest.process == manifest.process
        again = folder.read_result()
        assert again == written
        assert (again.run_id, again.status) == (result.run_id, result.status)
        assert (again.environment, again.timings) == (result.environment, result.timings)
        (row,) = RunRegistry(Path(runs_dir)).rows()
        assert (row.run_id, row.status, row.problem) == (result.run_id, result.status, None)
        if again.error is not None:
            assert (again.error.kind, again.error.type) == (error.kind, error.type)
            assert (
                secrets[0] not in again.error.message
                or len(secrets[0]) < 6
                or (secrets[0] in f"no {MARK}")
            )
        loaded, names = again.results
        (weights,) = [again.load(v) for v in loaded.values() if isinstance(v, Descriptor)]
        assert weights.tolist() == [1, 1]
        assert [again.load(name).read_text() for name in names] == ["first.txt", "weights"]
        for artifact in again.artifacts:
            assert (folder.path / artifact.path).stat().st_size == artifact.size_bytes
            assert not any(
                len(s) > 5 and s in artifact.path.partition("/")[2]
                for s in secrets
                if s not in "redacted-123"
            )


def test_files_of_writes_that_were_killed_are_no_artifacts(folder: RunFolder) -> None:
    listed = folder.list_artifacts()
    half_written = folder.artifacts_dir / f".ml-experiments-{'0' * 16}.tmp"
    half_written.parent.mkdir(exist_ok=True)
    half_written.write_text("half")
    assert folder.list_artifacts() == listed
    folder.begin_attempt(folder.read_manifest(), Redactor([]))
    assert not half_written.exists()


def names_files_after_secrets(api_key: str, password: str) -> Any:
    run = current_run()
    files = [run.output_dir / f"{secret}.txt" for secret in (api_key, password)]
    folder = run.output_dir / api_key / "inner"
    folder.mkdir(parents=True)
    files.append(folder / f"of {password}.txt")
    for content, file in enumerate(files):
        file.write_text(str(content))
    run.log({"file": files[0], api_key: np.ones(2)})
    return {"files": files, "folder": folder, password: np.zeros(2)}


def test_the_records_of_files_that_are_named_after_secrets_lead_to_them(tmp_path: Path) -> None:
    config = {"api_key": "first-secret", "password": "hunter2"}
    result = run_experiment(names_files_after_secrets, config, runs_dir=tmp_path, backend="debug")
    assert result.raise_for_error().run_dir is not None
    for path in tmp_path.rglob("*"):
        for secret in config.values():
            assert secret not in path.name
            assert path.is_dir() or secret.encode() not in path.read_bytes()
    results = result.results
    assert [result.load(file).read_text() for file in results["files"]] == ["0", "1", "2"]
    (inside,) = result.load(results["folder"]).iterdir()
    assert re.fullmatch(r"of redacted-\d+\.txt", inside.name)
    assert result.load(results[MARK]).tolist() == [0, 0]
    (metrics,) = RunFolder(result.run_dir).read_metrics()
    assert result.load(metrics["metrics"]["file"]).read_text() == "0"
    assert result.load(metrics["metrics"][MARK]).tolist() == [1, 1]
    sizes = {artifact.path: artifact.size_bytes for artifact in result.artifacts}
    assert len(sizes) == 5
    assert all((result.run_dir / path).stat().st_size == size for path, size in sizes.items())


values = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), st.floats()),
        st.sampled_from([10**400, -1, "", "\ud800", "[/red]", "succ", "success", "\x00", "../.."]),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.fixed_dictionaries(
            {"$type": st.sampled_from(["set", "dict", "datetime", "float", "int", "path", "file"])},
            optional={
                **dict.fromkeys(("items", "value", "hex", "path"), inner),
                **dict.fromkeys(("zone", "fold", "flavour"), inner),
            },
        ),
    ),
    max_leaves=5,
)


@st.composite
def damaged_json(draw: st.DrawFn, data: Any) -> Any:
    """Return JSON in which one value, at any depth, is another."""
    if isinstance(data, dict) and data and draw(st.integers(0, 3)) > 0:
        key = draw(st.sampled_from(sorted(data)))
        return {**data, key: draw(damaged_json(data[key]))}
    return draw(values)


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, str, str]:
    """Return which run, which of its files, and in what way it is damaged."""
    run = draw(st.sampled_from(["fails", "succeeds", "goes on"]))
    files = [file for file in FILES if (run, file) != ("goes on", "result.json")]
    return run, draw(st.sampled_from(files)), draw(st.sampled_from(["cut", "bytes", "value"]))


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(damage=damages(), data=st.data())
def test_no_damage_of_a_file_ends_in_a_traceback(
    three_runs: Path, damage: tuple[str, str, str], data: st.DataObject
) -> None:
    run, name, how = damage
    with tempfile.TemporaryDirectory() as scratch:
        runs_dir = Path(shutil.copytree(three_runs / run, Path(scratch) / "runs"))
        file = next(runs_dir.glob("2*")) / name
        content = file.read_bytes()
        if how == "value" and name.endswith(".json"):
            file.write_text(json.dumps(data.draw(damaged_json(json.loads(content)))))
        elif how == "cut":
            file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        else:
            place = data.draw(st.integers(0, len(content)))
            more = data.draw(st.binary(min_size=1, max_size=20))
            file.write_bytes(content[:place] + more + content[place + len(more) :])
        check_commands(runs_dir, name)
