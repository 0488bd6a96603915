"""Runs on Slurm: by submitit's local executor, and on Slurm itself where it is installed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from ml_experiments import (
    BackendError,
    ConfigError,
    RunHandle,
    RunResult,
    prepare_run,
    run_experiment,
    submit_experiment,
    submit_run,
)
from ml_experiments.backends.slurm import run_handle
from ml_experiments.backends.slurm.backend import SlurmBackend
from ml_experiments.backends.slurm.options import SlurmOptions
from ml_experiments.backends.slurm.queue import parse_gpu
from ml_experiments.cli.run import run
from ml_experiments.cli.runs.listing import list_
from ml_experiments.errors import GpuTypeError, PreflightError
from ml_experiments.execution.observer import Observer
from ml_experiments.runner.resume import attach_run, resume_run
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.heartbeat import request_cancel
from ml_experiments.runs.result import ErrorKind, RunStatus
from tests.support.command import call
from tests.support.launched_experiments import Regression
from tests.support.modal_runs import Recorder, folder_of
from tests.support.slurm_cluster import ClusterNotStartedError, slurm_cluster
from tests.support.slurm_experiments import Counts, HasSecret
from tests.support.waiting import wait_until

COUNTS = "tests.support.slurm_experiments.Counts"
WAIT_S = 60
QUIET = Observer()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Slurm itself, which all tests of this module share."""
    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment,
        ):
            for name, value in environment.items():
                patch.setenv(name, value)
            yield
    except ClusterNotStartedError as e:
        pytest.skip(f"Slurm can't be started here: {e}")


@pytest.fixture
def local(tmp_path: Path) -> Iterator[SlurmBackend]:
    """Jobs without Slurm."""
    with SlurmBackend(cluster="local") as backend:
        yield backend


@pytest.fixture
def slurm(cluster: None) -> Iterator[SlurmBackend]:
    with SlurmBackend() as backend:
        yield backend


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are seen here as soon as they are written."""
    monkeypatch.setattr(run_handle, "GRACE_S", 0.3)


def slurm_command(*command: str) -> None:
    subprocess.run(command, capture_output=True, check=True)


def job_of(handle: RunHandle) -> str:
    job = handle.folder.read_manifest().job
    assert job is not None
    return job


def wait_until_counting(handle: RunHandle) -> None:
    wait_until(lambda: len(list(handle.folder.read_metrics())) > 3, "some steps")


def kinds_of(result: RunResult) -> list[str]:
    return [str(attempt.kind or attempt.status) for attempt in result.attempts]


@pytest.mark.slow
def test_a_job_is_a_run_like_any_other(local: SlurmBackend) -> None:
    seen = Recorder()
    result = run_experiment(Counts, {"steps": 2}, backend=local, observer=seen, seed=3)
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results["began_at"] == 0
    assert [entry["metrics"] for entry in result.metrics] == [{"count": 0}, {"count": 1}]
    assert seen.lines == b"begins at 0\n"
    assert seen.events[0] == "started"
    assert {"metrics at 1", "progress 1/2", "progress 2/2"} <= set(seen.events)
    assert seen.events[-1] == "finished: success"
    folder = folder_of(result)
    spec, manifest = folder.read_spec(), folder.read_manifest()
    assert (spec.backend, spec.seed, spec.timeout_s) == ("slurm", 3, 4 * 3600)
    assert spec.backend_options == {"cluster": "local"}
    assert manifest.process is not None
    assert manifest.job is not None
    assert not any("no effect" in notice for notice in seen.notices)


@pytest.mark.slow
def test_without_slurm_a_run_says_what_has_no_effect() -> None:
    seen = Recorder()
    with SlurmBackend(cluster="local", partition="gpu", memory_gib=8) as backend:
        handle = submit_experiment(Counts, {}, backend=backend, observer=seen, gpu="a100:2")
        handle.cancel(at_once=True)
    what = "cluster=local: what is asked of Slurm has no effect (--gpu, memory_gib, partition)"
    assert what in seen.notices


@pytest.mark.slow
def test_a_job_whose_source_was_changed_in_the_queue_is_not_reused(
    local: SlurmBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "quick.py"
    source.write_text("def train(n=1): return n\n")
    monkeypatch.chdir(tmp_path)
    first = run_experiment("quick.train", {}, backend=local, observer=QUIET)
    assert run_experiment("quick.train", {}, backend=local, reuse=True).run_id == first.run_id
    prepared = prepare_run("quick.train", {"n": 2}, backend=local)
    source.write_text("def train(n=1): return n + 1\n")
    handle = submit_run(prepared, backend=local, observer=QUIET)
    assert handle.result(WAIT_S).results == 3
    assert handle.folder.read_manifest().fingerprint is None
    assert folder_of(first).read_manifest().fingerprint is not None


@pytest.mark.slow
def test_a_request_in_the_run_folder_cancels_a_run_and_nothing_is_left(
    local: SlurmBackend,
) -> None:
    handle = submit_experiment(Counts, {"steps": 10_000}, backend=local, observer=QUIET)
    wait_until_counting(handle)
    job = psutil.Process(int(job_of(handle)))
    processes = [job, *job.children(recursive=True)]
    request_cancel(handle.folder.path, at_once=False)  # as a process without Slurm would
    result = handle.result(WAIT_S)
    assert result.status is RunStatus.CANCELLED
    assert (handle.folder.artifacts_dir / "interrupted.txt").exists()
    psutil.wait_procs(processes, timeout=WAIT_S)
    assert not any(p.is_running() and p.status() != "zombie" for p in processes)


@pytest.mark.slow
def test_a_job_that_dies_without_a_result_is_an_error_and_can_be_resumed(
    local: SlurmBackend, short_grace: None
) -> None:
    handle = submit_experiment(Counts, {"steps": 40}, backend=local, observer=QUIET)
    wait_until_counting(handle)
    job = psutil.Process(int(job_of(handle)))
    for process in [*job.children(recursive=True), job]:
        process.kill()
    result = handle.result(WAIT_S)
    assert result.error is not None
    assert (result.error.kind, result.error.type) == (ErrorKind.INFRASTRUCTURE, "JobLost")
    again = resume_run(handle.folder, backend=local, observer=QUIET).result(WAIT_S)
    assert again.status is RunStatus.SUCCESS, again.error
    assert again.results["began_at"] > 3


@pytest.mark.parametrize(
    ("given", "gres"),
    [
        ("a100:2", "gpu:a100:2"),
        ("a100", "gpu:a100:1"),
        ("gpu:3", "gpu:3"),
        ("2", "gpu:2"),
        ("nvidia_a100_3g.20gb", "gpu:nvidia_a100_3g.20gb:1"),
    ],
)
def test_a_gpu_type_is_what_sbatch_takes(given: str, gres: str) -> None:
    assert parse_gpu(given).gres == gres


@pytest.mark.parametrize("given", ["", "a100:", "a100:0", "a100:two", "h100,a100", "0", "h100!"])
def test_what_is_no_gpu_type_of_slurm_is_refused(given: str) -> None:
    with pytest.raises(GpuTypeError, match="is not a GPU type of a Slurm cluster"):
        parse_gpu(given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"partitions": "gpu"},
            "partitions: unknown option, given 'gpu' (did you mean",
        ),
        ({"cpus_per_task": "4"}, "cpus_per_task: given '4': it must be a valid integer"),
        ({"memory_gib": -1.0}, "memory_gib: given -1.0: it must be greater than 0"),
        ({"setup": "module load cuda"}, "write a list: setup=['module load cuda']"),
        ({"cluster": "slrm"}, "cluster: given 'slrm'"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SlurmBackend(**options)
    assert message in str(caught.value)


def test_a_machine_without_slurm_says_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendError, match=r"no sbatch, squeue, scancel.*login node"):
        SlurmBackend()


def test_a_configuration_that_is_not_there_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "squeue", "scancel"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_CONF", "/nowhere/slurm.conf")
    with pytest.raises(BackendError, match=r"SLURM_CONF is '/nowhere/slurm\.conf', which"):
        SlurmBackend()


def test_a_secret_does_not_get_into_the_run_folder(local: SlurmBackend) -> None:
    with pytest.raises(PreflightError, match="read it from an environment variable"):
        prepare_run(HasSecret, {"token": "a-token-of-length"}, backend=local)


@pytest.fixture
def accepting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_grace: None) -> None:
    """Slurm's commands where a cluster takes every job, and none runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    answers = {"sbatch": "Submitted batch job 7", "sinfo": "gpu:a100:4"}
    for name in ("sbatch", "squeue", "scancel", "scontrol", "sacct", "sinfo", "srun"):
        program = programs / name
        program.write_text(f"#!/bin/sh\necho '{answers.get(name, '')}'\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)


def script_of(runs_dir: Path, *options: str) -> set[str]:
    """Submit a run by the command, and return the lines of its job's script, without quotes."""
    done = CliRunner().invoke(run, [COUNTS, "--backend", "slurm", *options])
    assert done.exit_code == 1, done.output  # its job is lost
    [script] = runs_dir.glob("*/.slurm/7_submission.sh")
    return {" ".join(shlex.split(line)) for line in script.read_text().splitlines()}


def test_each_option_reaches_the_script_of_the_job(accepting: None, runs_dir: Path) -> None:
    lines = {
        "partition=a,b": "#SBATCH --partition=a,b",
        "account=vision": "#SBATCH --account=vision",
        "qos=high": "#SBATCH --qos=high",
        "constraint=a100&ib": "#SBATCH --constraint=a100&ib",
        "reservation=ours": "#SBATCH --reservation=ours",
        "nodelist=n[1-2]": "#SBATCH --nodelist=n[1-2]",
        "exclude=n3": "#SBATCH --exclude=n3",
        "cpus_per_task=4": "#SBATCH --cpus-per-task=4",
        "memory_gib=1.5": "#SBATCH --mem=1536M",
        "setup=module load cuda": "module load cuda",
        "setup=source env.sh": "source env.sh",
        "sbatch.licenses=matlab": "#SBATCH --licenses=matlab",
        "signal_delay_s=300": "#SBATCH --signal=B:USR2@300",
    }
    names = {option.partition("=")[0].partition(".")[0] for option in lines}
    assert names == set(SlurmOptions.__annotations__) - {"cluster"}
    given = [word for option in lines for word in ("--slurm", option)]
    more = ("--gpu", "a100:2", "--name", "first try", "--timeout", "1h")
    of_the_run = {
        "#SBATCH --gres=gpu:a100:2",
        "#SBATCH --job-name=first_try",
        "#SBATCH --time=67",  # 3600 s, 300 s to save, and 120 s to start and end
    }
    script = script_of(runs_dir, *given, *more)
    assert {*lines.values(), *of_the_run} - script == set()


def test_what_is_not_asked_of_slurm_is_the_clusters_choice(accepting: None, runs_dir: Path) -> None:
    script = script_of(runs_dir)
    given = {line.split()[1].partition("=")[0] for line in script if line.startswith("#SBATCH")}
    assert not given & {"--partition", "--account", "--qos", "--gres", "--mem", "--cpus-per-task"}
    assert script >= {"#SBATCH --time=244", "#SBATCH --signal=B:USR2@90", "#SBATCH --requeue"}


@pytest.mark.slow
def test_a_job_starts_a_process_for_each_rank(local: SlurmBackend) -> None:
    pytest.importorskip("torch")
    result = run_experiment(
        Regression, {"steps": 1}, backend=local, launch="torchrun", nproc_per_node=2
    )
    assert result.status is RunStatus.SUCCESS, result.error
    assert (result.results["rank"], result.results["world_size"]) == (0, 2)


@pytest.mark.slow
def test_what_is_asked_of_slurm_is_what_a_job_gets(cluster: None) -> None:
    seen = Recorder()
    done = run_experiment(
        *(Counts, {}),
        backend="slurm",
        backend_options={
            "partition": "main",
            "cpus_per_task": 2,
            "memory_gib": 0.5,
            "setup": ["export FROM_SETUP=yes"],
            "sbatch": {"comment": "mine"},
        },
        gpu="fake:2",
        name="first try",
        timeout_s=600,
        observer=seen,
    )
    assert done.status is RunStatus.SUCCESS, done.error
    assert done.results == {"began_at": 0, "gpus": "0,1", "cpus": "2", "setup": "yes"}
    assert seen.lines == b"begins at 0\n"
    manifest = folder_of(done).read_manifest()
    [script] = folder_of(done).path.glob(".slurm/*_submission.sh")
    expected = (
        *("--partition=main", "--cpus-per-task=2", "--mem=512M", "--gres=gpu:fake:2"),
        *("--comment=mine", "--job-name=first_try", "--time=14", "--signal=B:USR2@90", "--requeue"),
    )
    assert {f"#SBATCH {option}" for option in expected} <= set(script.read_text().splitlines())
    assert script.name == f"{manifest.job}_submission.sh"


@pytest.mark.slow
def test_what_slurm_does_to_jobs_is_what_becomes_of_their_runs(slurm: SlurmBackend) -> None:
    def submit(steps: int, **options: Any) -> RunHandle:
        return submit_experiment(
            *(Counts, {"steps": steps}), backend=slurm, observer=QUIET, **options
        )

    requeued, told, ended, cancelled = (submit(n) for n in (60, 60, 10_000, 10_000))
    waiting = [submit(1, gpu="fake:4") for _ in range(3)]
    for handle in (requeued, told, ended, cancelled):
        wait_until_counting(handle)
    slurm_command("scontrol", "requeue", job_of(requeued))
    slurm_command("scancel", "--batch", "--signal=USR2", job_of(told))
    slurm_command("scancel", job_of(ended))
    cancelled.cancel()
    waiting[2].cancel()
    # by Slurm's own commands or by ours, a cancelled run may save what it has
    for handle in (ended, cancelled):
        assert handle.result(WAIT_S).status is RunStatus.CANCELLED
        assert kinds_of(handle.result()) == ["cancelled"]
        assert (handle.folder.artifacts_dir / "interrupted.txt").exists()
    assert waiting[2].result(WAIT_S).status is RunStatus.CANCELLED
    assert [handle.result(WAIT_S).status for handle in waiting[:2]] == [RunStatus.SUCCESS] * 2
    # a job that is started again goes on from its checkpoint
    for handle in (requeued, told):
        result = handle.result(WAIT_S)
        assert result.status is RunStatus.SUCCESS, result.error
        assert result.results["began_at"] > 3
        assert kinds_of(result) == ["preempted", "success"]


@pytest.mark.slow
def test_runs_go_on_without_their_client_and_lists_see_how_they_ended(
    cluster: None, runs_dir: Path, tmp_path: Path, short_grace: None
) -> None:
    ids, until = [], tmp_path / "until"
    for steps in (10_000, 1, 1):  # the others wait for the GPUs of the first
        options = ("--slurm", "partition=main", "--gpu", "fake:4", "--detach", "--json")
        done = call("run", COUNTS, f"steps={steps}", f"until={until}", *options)
        assert done.returncode == 0, done.stderr
        ids.append(json.loads(done.stdout)["run_id"])
    going_on, waiting, resumed = (RunFolder(runs_dir / run_id) for run_id in ids)
    for folder in (going_on, waiting, resumed):
        client = folder.read_manifest().client
        assert client is not None
        psutil.Process(client.pid).kill()
    for folder in (waiting, resumed):
        slurm_command("scancel", folder.read_manifest().job or "")
    with SlurmBackend() as backend:
        followed = attach_run(going_on, backend=backend, observer=QUIET)
        until.touch()
        result = followed.result(WAIT_S)
        again = resume_run(resumed, backend=backend, observer=QUIET).result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert kinds_of(again) == ["cancelled", "success"]
    assert waiting.outcome().status is RunStatus.PENDING
    listed = CliRunner().invoke(list_, ["--json"])
    statuses = {row["run_id"]: row["status"] for row in json.loads(listed.stdout)}
    assert statuses == dict(zip(ids, ("success", "cancelled", "success"), strict=True))
    assert waiting.read_result().status is RunStatus.CANCELLED


@pytest.mark.slow
def test_what_the_cluster_lacks_is_said_before_anything_is_submitted(slurm: SlurmBackend) -> None:
    for gpu, message in (
        ("fakes", "'fakes' is not a GPU type of the cluster (did you mean 'fake'?); it has fake:4"),
        ("fake:9", "gpu:fake:9 asks for more GPUs than a node has; there is fake:4"),
    ):
        with pytest.raises(GpuTypeError) as caught:
            prepare_run(Counts, backend=slurm, gpu=gpu)
        assert message in str(caught.value)
    with (
        SlurmBackend(partition="nowhere") as backend,
        pytest.raises(BackendError, match=r"Slurm did not take the run.*partition"),
    ):
        submit_experiment(Counts, backend=backend, observer=QUIET)
