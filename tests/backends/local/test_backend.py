"""Runs in real worker processes: how they start, stay warm, end and die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import psutil
import pytest

from ml_experiments import (
    BackendError,
    ConfigError,
    LocalBackend,
    run_experiment,
    submit_experiment,
)
from ml_experiments.backends import base
from ml_experiments.errors import RunFolderError
from ml_experiments.execution.observer import Observer
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from ml_experiments.runs.spec import RunSpec
from tests.support.experiments import Counts, Draw, DrawTorch, Ends, Fit, Plain
from tests.support.small_disk import small_disk

WAIT_S = 60


@pytest.fixture(scope="module")
def backend() -> Iterator[LocalBackend]:
    with LocalBackend() as opened:
        yield opened


def run_ends(backend: LocalBackend, how: str, **options: Any) -> RunResult:
    return run_experiment(Ends, {"how": how}, backend=backend, **options)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


class Recorder(Observer):
    """Keeps what it hears, and can act when a run has started."""

    def __init__(self, on_progress: Callable[[], None] | None = None) -> None:
        self.logs: dict[str, bytes] = {}
        self.steps: list[float] = []
        self.metric_steps: list[int | None] = []
        self.began = threading.Event()
        self.statuses: list[str] = []

    def started(self, spec: RunSpec) -> None:
        self.began.set()

    def log(self, spec: RunSpec, data: bytes) -> None:
        self.logs[spec.run_id] = self.logs.get(spec.run_id, b"") + data

    def progress(self, spec: RunSpec, done: float, total: float | None, text: str) -> None:
        self.steps.append(done)

    def metrics(self, spec: RunSpec, metrics: Any, step: int | None) -> None:
        self.metric_steps.append(step)

    def finished(self, spec: RunSpec, result: RunResult) -> None:
        self.statuses.append(str(result.status))


def test_a_plain_class_runs_in_another_process(backend: LocalBackend) -> None:
    result = run_experiment(Plain, {"a": [1, {"b": None}]}, backend=backend)
    assert result.status is RunStatus.SUCCESS
    assert result.results["config"] == {"a": [1, {"b": None}]}
    assert result.results["pid"] != os.getpid()
    assert result.to_dict()["status"] == "success"
    assert result.to_dict()["experiment_class"].endswith("experiments:Plain")


def test_metrics_progress_logs_and_artifacts_come_back(backend: LocalBackend) -> None:
    recorder = Recorder()
    result = run_experiment(Fit, {"steps": 3}, backend=backend, observer=recorder)
    assert recorder.steps == [1, 2, 3]
    assert recorder.metric_steps == [0, 1, 2]
    assert recorder.logs[result.run_id] == b"step 0\nstep 1\nstep 2\n"
    assert recorder.statuses == ["success"]
    assert result.run_dir is not None
    assert [a.path for a in result.artifacts] == ["artifacts/weights.txt"]
    lines = (result.run_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"]["loss"] for line in lines] == [1.0, 1 / 2, 1 / 3]


def test_the_experiment_stays_set_up_while_its_setup_fields_do(backend: LocalBackend) -> None:
    def run(**config: Any) -> Any:
        return run_experiment(Fit, config, backend=backend).results

    first = run(model_name="a", steps=1)
    second = run(model_name="a", steps=2)
    third = run(model_name="b", steps=2)
    assert (second["pid"], second["setups"], second["steps"]) == (first["pid"], 1, 2)
    assert second["instance"] == first["instance"]
    assert third["pid"] != first["pid"]
    assert third["set_up_with"] == "b"
    assert third["setups"] == 1


def test_an_experiment_that_failed_is_set_up_anew(tmp_path: Path) -> None:
    (tmp_path / "flaky.py").write_text(
        "from ml_experiments import Experiment, ExperimentConfig\n"
        "class Flaky(Experiment):\n"
        "    class Config(ExperimentConfig):\n"
        "        fail: bool = False\n"
        "    def setup(self): self.failed = False\n"
        "    def run(self):\n"
        "        if self.config.fail:\n"
        "            self.failed = True\n"
        "            raise ValueError\n"
        "        return self.failed\n"
    )
    path = f"{tmp_path}/flaky.py:Flaky"
    with LocalBackend() as backend:
        assert run_experiment(path, {}, backend=backend).results is False
        assert run_experiment(path, {"fail": True}, backend=backend).error is not None
        assert run_experiment(path, {}, backend=backend).results is False


def test_edited_code_is_what_runs_next(tmp_path: Path) -> None:
    file = tmp_path / "edited.py"
    with LocalBackend() as backend:
        for value in (1, 2):
            file.write_text(f"def answer(config):\n    return {value}\n")
            assert run_experiment(f"{file}:answer", {}, backend=backend).results == value


def test_a_seed_decides_every_draw(backend: LocalBackend) -> None:
    first, again, other = (
        run_experiment(Draw, {}, backend=backend, seed=seed).results for seed in (1, 1, 2)
    )
    assert first == again
    assert first["random"] != other["random"]
    assert first["numpy"] != other["numpy"]


@pytest.mark.slow
def test_a_seed_holds_for_torch_imported_inside_run() -> None:
    pytest.importorskip("torch")
    with LocalBackend() as backend:
        cold = run_experiment(DrawTorch, {}, backend=backend, seed=5).results
        warm = run_experiment(DrawTorch, {}, backend=backend, seed=5).results
        other = run_experiment(DrawTorch, {}, backend=backend, seed=6).results
    assert cold == warm != other


def test_a_seed_is_drawn_and_recorded_when_none_is_given(backend: LocalBackend) -> None:
    result = run_experiment(Draw, {}, backend=backend)
    assert result.run_dir is not None
    seed = json.loads((result.run_dir / "manifest.json").read_text())["seed"]
    assert run_experiment(Draw, {}, backend=backend, seed=seed).results == result.results


@pytest.mark.parametrize(
    ("how", "kind", "error_type", "told"),
    [
        ("value_error", ErrorKind.EXPERIMENT, "ValueError", "the loss is not a number"),
        ("chained", ErrorKind.EXPERIMENT, "RuntimeError", "training failed"),
        ("cuda_oom_by_message", ErrorKind.CUDA_OOM, "RuntimeError", "CUBLAS_STATUS_ALLOC_FAILED"),
        ("memory_error", ErrorKind.HOST_OOM, "MemoryError", ""),
        ("missing_module", ErrorKind.IMPORT, "ModuleNotFoundError", "a_package_that_is_not_there"),
        ("sys_exit", ErrorKind.EXPERIMENT, "SystemExit", "3"),
        ("unpicklable", ErrorKind.EXPERIMENT, "Unpicklable", "still told"),
        ("unprintable", ErrorKind.EXPERIMENT, "Unprintable", "could not be read"),
        ("os_exit", ErrorKind.EXPERIMENT, "ProcessExit", "exit code 7"),
        ("segfault", ErrorKind.EXPERIMENT, "SIGSEGV", "crashed its process"),
        ("sigkill", ErrorKind.HOST_OOM, "SIGKILL", "lack of memory"),
    ],
)
def test_each_way_to_fail_becomes_an_error_of_its_kind(
    backend: LocalBackend, how: str, kind: ErrorKind, error_type: str, told: str
) -> None:
    result = run_ends(backend, how)
    assert result.status is RunStatus.ERROR
    assert result.error is not None
    assert (result.error.kind, result.error.type) == (kind, error_type)
    assert told in result.error.message
    assert [a.path for a in result.artifacts] == ["artifacts/partial.txt"]
    assert result.run_dir is not None
    assert (result.run_dir / "metrics.jsonl").read_text().count("\n") == 1
    assert (result.run_dir / "result.json").exists()


@pytest.mark.slow
def test_torchs_own_out_of_memory_exception_is_cuda_oom(backend: LocalBackend) -> None:
    pytest.importorskip("torch")
    error = run_ends(backend, "cuda_oom_by_type").error
    assert error is not None
    assert error.kind is ErrorKind.CUDA_OOM
    assert "batch_size" in error.hint


def test_a_traceback_shows_the_experiments_frames_and_none_of_ours(backend: LocalBackend) -> None:
    error = run_ends(backend, "chained").error
    assert error is not None
    assert "in value_error" in error.traceback
    assert "The above exception was the direct cause" in error.traceback
    assert "execution.py" not in error.traceback


def test_a_native_crash_shows_the_python_line_that_caused_it(backend: LocalBackend) -> None:
    error = run_ends(backend, "segfault").error
    assert error is not None
    assert "Segmentation fault" in error.traceback
    assert "in segfault" in error.traceback


def test_a_missing_module_names_the_package_to_install(backend: LocalBackend) -> None:
    error = run_ends(backend, "missing_module").error
    assert error is not None
    assert error.hint == "pip install a_package_that_is_not_there"


def test_what_can_be_represented_is_kept_beside_what_cannot(backend: LocalBackend) -> None:
    result = run_ends(backend, "unportable")
    assert result.status is RunStatus.ERROR
    assert result.error is not None
    assert "results.bad[0]" in result.error.message
    assert result.results["good"] == 1


def test_output_that_is_not_utf8_is_kept_as_it_is(backend: LocalBackend) -> None:
    result = run_ends(backend, "not_utf8")
    assert result.status is RunStatus.SUCCESS
    assert result.run_dir is not None
    assert b"caf\xe9 \xff\xfe\n" in (result.run_dir / "log.txt").read_bytes()


def test_output_of_child_processes_is_kept(backend: LocalBackend) -> None:
    result = run_ends(backend, "subprocess_output")
    assert result.run_dir is not None
    assert (result.run_dir / "log.txt").read_text() == "from a child\n"


@pytest.mark.parametrize(("how", "size"), [("many_lines", 1_088_890), ("one_long_line", 3_000_001)])
def test_much_output_neither_blocks_nor_is_lost(backend: LocalBackend, how: str, size: int) -> None:
    recorder = Recorder()
    result = run_ends(backend, how, observer=recorder)
    assert result.status is RunStatus.SUCCESS
    assert result.run_dir is not None
    written = (result.run_dir / "log.txt").read_bytes()
    assert len(written) == size
    assert recorder.logs[result.run_id] == written


def test_the_soft_timeout_keeps_partial_results_and_metrics(backend: LocalBackend) -> None:
    result = run_ends(backend, "partial_results", timeout_s=4.0)
    assert result.status is RunStatus.ERROR
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    assert result.results["done"] > 0
    assert result.timings["total_s"] < 30
    assert "runs resume" in result.error.hint


def test_a_run_that_sleeps_is_told_and_ends(backend: LocalBackend) -> None:
    result = run_ends(backend, "sleeps", timeout_s=4.0)
    assert result.error is not None
    assert (result.error.kind, result.error.type) == (ErrorKind.TIMEOUT, "SoftTimeout")
    assert "in sleeps" in result.error.traceback


def test_a_run_that_ignores_the_soft_timeout_is_ended(backend: LocalBackend) -> None:
    result = run_ends(backend, "ignores_soft_timeout", timeout_s=1.0)
    assert result.error is not None
    assert (result.error.kind, result.error.type) == (ErrorKind.TIMEOUT, "TimeoutError")


def test_a_timeout_ends_everything_that_the_run_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with LocalBackend() as backend:
        result = run_experiment(
            Ends,
            {"how": "leaves_children_and_sleeps", "pids": str(pids)},
            backend=backend,
            timeout_s=2.0,
        )
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))


def test_closing_leaves_no_process_behind() -> None:
    known = set(psutil.Process().children(recursive=True))
    with LocalBackend() as backend:
        left = run_ends(backend, "leaves_children").results
        assert not any(map(is_running, left))  # they end with the run
        worker = run_experiment(Fit, {"steps": 1}, backend=backend).results["pid"]
        assert is_running(worker)
        processes = set(psutil.Process().children(recursive=True)) - known
    wait_until(lambda: not any(process.is_running() for process in processes))
    assert not is_running(worker)


def test_a_worker_that_dies_takes_only_its_own_run_with_it() -> None:
    with LocalBackend(max_workers=2) as backend:
        handles = [
            submit_experiment(Ends, {"how": how}, backend=backend)
            for how in ("segfault", "sigkill", "subprocess_output", "os_exit", "not_utf8")
        ]
        statuses = [handle.result(WAIT_S).status for handle in handles]
    assert statuses == ["error", "error", "success", "error", "success"]


def test_nothing_temporary_is_left_however_runs_end(runs_dir: Path) -> None:
    with LocalBackend() as backend:
        for how in ("subprocess_output", "value_error", "sigkill"):
            run_ends(backend, how)
    left = {file.name for file in runs_dir.rglob("*") if file.is_file()}
    assert left == {
        *("spec.json", "manifest.json", "result.json", "log.txt", ".log-times", "metrics.jsonl"),
        *("partial.txt", "SHA256SUMS"),
    }
    assert [entry for entry in runs_dir.iterdir() if entry.name.startswith(".")] == []


def test_runs_execute_at_the_same_time_up_to_max_workers() -> None:
    with LocalBackend(max_workers=2) as backend:
        handles = [submit_experiment(Plain, {"i": i}, backend=backend) for i in range(6)]
        results = [handle.result(WAIT_S) for handle in handles]
    assert [result.results["config"]["i"] for result in results] == list(range(6))
    assert len({result.results["pid"] for result in results}) == 6


def test_cancelling_interrupts_the_experiment() -> None:
    recorder = Recorder()
    with LocalBackend() as backend:
        handle = submit_experiment(Ends, {"how": "sleeps"}, backend=backend, observer=recorder)
        assert recorder.began.wait(WAIT_S)
        time.sleep(0.3)
        handle.cancel()
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.CANCELLED
    assert result.error is None
    assert result.run_dir is not None
    assert json.loads((result.run_dir / "result.json").read_text())["status"] == "cancelled"


def test_a_handle_says_where_its_run_stands() -> None:
    recorder = Recorder()
    with LocalBackend() as backend:
        handle = submit_experiment(Ends, {"how": "sleeps"}, backend=backend, observer=recorder)
        assert recorder.began.wait(WAIT_S)
        wait_until(lambda: handle.status is RunStatus.RUNNING)
        assert not handle.done()
        handle.cancel()
        handle.result(WAIT_S)
        assert (handle.done(), handle.status) == (True, RunStatus.CANCELLED)
        handle = submit_experiment(Fit, {"steps": 2}, backend=backend)
        handle.result(WAIT_S)
        assert (handle.logs(), handle.status) == ("step 0\nstep 1\n", RunStatus.SUCCESS)


def test_cancelling_ends_an_experiment_that_ignores_it() -> None:
    recorder = Recorder()
    with LocalBackend() as backend:
        handle = submit_experiment(
            Ends, {"how": "ignores_interrupt"}, backend=backend, observer=recorder
        )
        assert recorder.began.wait(WAIT_S)
        handle.cancel()
        handle.cancel(at_once=True)
        assert handle.result(WAIT_S).status is RunStatus.CANCELLED


@pytest.mark.parametrize("is_closed_by_hand", [False, True], ids=["with", "close()"])
def test_an_interrupt_while_a_backend_waits_for_its_runs_cancels_them(
    is_closed_by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt() -> None:
        assert recorder.began.wait(WAIT_S)
        assert waits.wait(WAIT_S)
        os.kill(os.getpid(), signal.SIGINT)

    def wait_noted(futures: Any) -> Any:
        waits.set()
        return wait(futures)

    recorder, waits = Recorder(), threading.Event()
    monkeypatch.setattr(base, "wait", wait_noted)
    threading.Thread(target=interrupt, daemon=True).start()
    backend = LocalBackend(max_workers=1)
    options: dict[str, Any] = {"backend": backend, "observer": recorder}
    handles = [submit_experiment(Ends, {"how": "sleeps"}, **options) for _ in range(2)]
    leave = backend.close if is_closed_by_hand else lambda: backend.__exit__(None, None, None)
    with pytest.raises(KeyboardInterrupt):
        leave()
    results = [handle.result(WAIT_S) for handle in handles]
    assert [result.status for result in results] == [RunStatus.CANCELLED] * 2
    assert "run_s" not in results[1].timings
    backend.close()


def test_a_queued_run_is_cancelled_before_it_starts() -> None:
    recorder = Recorder()
    with LocalBackend() as backend:
        first = submit_experiment(Ends, {"how": "sleeps"}, backend=backend, observer=recorder)
        second = submit_experiment(Plain, {}, backend=backend)
        assert recorder.began.wait(WAIT_S)
        second.cancel()
        first.cancel()
        assert second.result(WAIT_S).status is RunStatus.CANCELLED
        assert second.result().results is None


def test_a_killed_client_leaves_a_cancelled_run_and_no_process(
    tmp_path: Path, runs_dir: Path
) -> None:
    pids = tmp_path / "pids"
    client = subprocess.Popen(
        [
            *(sys.executable, "-m", "ml_experiments", "run"),
            "tests.support.experiments:Ends",
            "how=leaves_children_and_sleeps",
            f"pids={pids}",
        ],
        stdout=subprocess.DEVNULL,
    )
    wait_until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    worker = psutil.Process(client.pid).children()[0]
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: not is_running(worker.pid))
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids.read_text().split()))
    (folder,) = (f for f in runs_dir.iterdir() if not f.name.startswith("."))
    assert json.loads((folder / "result.json").read_text())["status"] == "cancelled"


def test_a_killed_run_resumes_from_its_checkpoint(runs_dir: Path) -> None:
    from ml_experiments.runner.resume import resume_run
    from ml_experiments.runs.folder import RunFolder

    with LocalBackend() as backend:
        died = run_experiment(Counts, {}, backend=backend)
        assert died.error is not None
        assert died.error.type == "SIGKILL"
        resumed = resume_run(RunFolder(runs_dir / died.run_id), backend=backend).result(WAIT_S)
    assert resumed.status is RunStatus.SUCCESS
    assert resumed.results == {"first": 5, "until": 10}
    assert resumed.run_id == died.run_id


def test_gpus_are_given_out_one_per_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sees.py").write_text(
        "import os\ndef sees(config):\n    return os.environ.get('CUDA_VISIBLE_DEVICES')\n"
    )
    path = f"{tmp_path}/sees.py:sees"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with LocalBackend() as backend:
        handles = [submit_experiment(path, {}, backend=backend) for _ in range(6)]
        seen = {handle.result(WAIT_S).results for handle in handles}
    assert seen == {"3", "5"}


@pytest.mark.slow
def test_workers_share_the_cores_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "counts.py").write_text(
        "import os\n"
        "def threads(config):\n    return os.environ.get('OMP_NUM_THREADS')\n"
        "def waiting(config):\n    return os.environ['OMP_WAIT_POLICY']\n"
    )
    path, cores = f"{tmp_path}/counts.py:threads", os.cpu_count() or 1
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with LocalBackend() as backend:
        assert run_experiment(path, backend=backend).results is None
    with LocalBackend(max_workers=2) as backend:
        assert run_experiment(path, backend=backend).results == str(max(1, cores // 2))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with LocalBackend(max_workers=2) as backend:
        assert run_experiment(path, backend=backend).results == "7"
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    waiting = f"{tmp_path}/counts.py:waiting"
    assert run_experiment(waiting).results == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run_experiment(waiting).results == "ACTIVE"


def test_a_gpu_type_cannot_be_asked_for_here(backend: LocalBackend) -> None:
    with pytest.raises(BackendError, match="this machine's own GPUs"):
        run_experiment(Plain, {}, backend=backend, gpu="a10g")


def test_max_workers_must_be_positive() -> None:
    with pytest.raises(ConfigError, match=r"max_workers: given 0: it must be .* 1"):
        LocalBackend(max_workers=0)


def test_a_full_disk_is_told_and_the_result_still_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # of a git repository's folder the manifest holds much
    (tmp_path / "fills.py").write_text(
        "from ml_experiments import current_run\n"
        "def fills(config):\n"
        "    (current_run().output_dir / 'big').write_bytes(b'x' * 1_000_000)\n"
    )
    with small_disk(tmp_path / "disk", "256k") as disk:
        result = run_experiment(f"{tmp_path}/fills.py:fills", {}, runs_dir=disk)
    assert result.status is RunStatus.ERROR
    assert result.error is not None
    assert result.error.kind is ErrorKind.INFRASTRUCTURE
    assert "No space left" in result.error.message
    assert "ML_EXPERIMENTS_RUNS_DIR" in result.error.hint


@pytest.mark.slow
def test_an_array_that_does_not_fit_on_the_disk_is_told_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saves.py").write_text(
        "import numpy as np\n"
        "from ml_experiments import current_run\n"
        "def saves(config):\n"
        "    np.save(current_run().output_dir / 'big.npy', np.ones(100_000))\n"
        "def returns(config):\n"
        "    return np.ones(100_000)\n"
    )
    for name in ("saves", "returns"):
        with small_disk(tmp_path / name, "256k") as disk:
            result = run_experiment(f"{tmp_path}/saves.py:{name}", {}, runs_dir=disk)
        assert result.error is not None
        assert result.error.kind is ErrorKind.INFRASTRUCTURE
        assert "free some disk space" in result.error.hint


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_leaves_no_run_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trivial.py").write_text("def trivial(config): ...\n")
    for pages in range(1, 5):  # room for fewer of the files of a run, or more
        with small_disk(tmp_path / f"disk{pages}", f"{4 * pages}k") as disk:
            try:
                result = run_experiment(f"{tmp_path}/trivial.py:trivial", {}, runs_dir=disk)
            except RunFolderError:  # it says what to do, and leaves nothing
                assert list(disk.iterdir()) == []
                continue
            assert result.run_dir is not None
            outcome = RunFolder(result.run_dir).outcome()
            assert outcome.status is result.status
            if result.error is not None:
                assert result.error.kind is ErrorKind.INFRASTRUCTURE
                assert outcome.error is not None
                assert outcome.error.kind is ErrorKind.INFRASTRUCTURE
