"""Runs on Modal, as the emulator serves it: the real client, real containers."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterator
from pathlib import Path

import modal
import pytest

from ml_experiments.backends.local.backend import LocalBackend
from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.errors import ConfigError, Error
from ml_experiments.runner.prepare import prepare_run
from ml_experiments.runner.resume import resume_run
from ml_experiments.runner.run import run_experiment, submit_experiment
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import ErrorKind, RunResult, RunStatus
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from modal_emulator import Emulator
from tests.support import difficult_experiments as difficult
from tests.support.modal_experiments import (
    Counts,
    Environment,
    Fails,
    Greet,
    Leaks,
    Plain,
    Resumes,
    Warm,
)
from tests.support.modal_runs import WAIT_S, Recorder, folder_of, function_of, wait_for_checkpoint

pytestmark = pytest.mark.slow

EXPERIMENT = "ml_experiments.tasks.text_to_image:TextToImageExperiment"


@pytest.fixture(scope="module")
def backend(modal_emulator_server: Emulator) -> Iterator[ModalBackend]:
    with ModalBackend() as opened:
        yield opened


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_models_of_this_machine_are_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ink.safetensors").touch()
    with ModalBackend() as opened:
        for config, start in (
            ({"lora": "ink.safetensors"}, f"{tmp_path}/ink.safetensors is a path of this machine "),
            ({"model_name": "./mine"}, f"{tmp_path}/mine is a path of this machine, where nothing"),
        ):
            with pytest.raises(ConfigError, match="modal volume put hf-model-cache") as refused:
                run_experiment(TextToImageExperiment, {"prompt": "x", **config}, backend=opened)
            assert str(refused.value).startswith(start)
        there = {"prompt": "x", "model_name": "/cache/models/mine", "lora": "org/name"}
        assert opened.describe(EXPERIMENT, (), there, 1)[0].local_models == (there["model_name"],)
    lora = {"prompt": "x", "lora": "ink.safetensors"}
    with LocalBackend() as here, pytest.raises(ConfigError, match=r"ink\.safetensors is a path of"):
        prepare_run(TextToImageExperiment, lora, backend=here, escalate_to="t4")


def test_a_run_comes_back_with_results_logs_metrics_and_artifacts(
    modal_emulator: Emulator, backend: ModalBackend, recorder: Recorder
) -> None:
    result = run_experiment(
        Greet, {"name": "Ada", "steps": 3}, backend=backend, observer=recorder, seed=7
    )

    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results["greeting"] == "hello Ada"
    assert math.isnan(result.results["nan"])
    assert result.results["seed"] == 7
    assert result.experiment_class == "tests.support.modal_experiments:Greet"
    assert [a.path for a in result.artifacts] == ["artifacts/deep/greeting.txt"]
    folder = folder_of(result)
    assert (folder.path / "artifacts/deep/greeting.txt").read_text() == "hello Ada"
    assert [m["metrics"]["loss"] for m in folder.read_metrics()] == [1, 0.5, 1 / 3]
    log = "".join(f"greeting Ada, step {step}\n" for step in range(3))
    assert folder.log_file.read_text() == log
    assert recorder.lines.decode() == log
    assert recorder.events[0] == "started"
    assert recorder.events[-1] == "finished: success"
    assert {"progress 3/3", "metrics at 2"} <= set(recorder.events)
    assert folder.read_result().to_dict() == result.to_dict()
    # checkpoints may be large and stay on the volume
    assert not (folder.checkpoint_dir / "large.bin").exists()


def test_the_manifest_says_where_the_run_was_and_what_it_ran_on(
    modal_emulator: Emulator, backend: ModalBackend, recorder: Recorder
) -> None:
    result = run_experiment(Greet, {}, backend=backend, observer=recorder)
    manifest = folder_of(result).read_manifest().to_dict()
    assert manifest["modal"]["gpu"] == "A10"
    assert manifest["modal"]["function_call_id"].startswith("fc-")
    assert "python" in manifest["environment"]
    assert manifest["client"]["pid"] != manifest["process"]["pid"]
    assert any(manifest["modal"]["app_url"] in notice for notice in recorder.notices)


def test_gpu_timeout_and_resources_are_what_the_server_receives(
    modal_emulator: Emulator, recorder: Recorder
) -> None:
    modal_emulator.limit_gpu("H100", 0)
    with ModalBackend(cpu=2, memory_gib=3) as backend:
        result = run_experiment(
            Environment,
            {},
            backend=backend,
            gpu="h100:2,a100-80gb",
            timeout_s=77,
            observer=recorder,
        )
    assert result.results["gpu"] == "A100-80GB"
    assert result.results["gpu_count"] == "1"
    function = function_of(modal_emulator, result.run_id)
    assert function.gpus == ("H100:2", "A100-80GB")
    assert function.timeout_s == 77
    assert function.startup_timeout_s == 600
    assert function.retries == 0
    assert function.cpu == (2, 32)
    assert function.memory_mb == (3 * 1024, 320 * 1024)
    volumes = {path: use.name for path, use in function.volumes.items()}
    assert volumes == {"/cache": "hf-model-cache", "/runs": "ml-experiments-runs"}
    spec = folder_of(result).read_spec()
    assert (spec.gpu, spec.timeout_s) == ("h100:2,a100-80gb", 77)
    assert function.scaledown_window_s == 60
    # 2 H100 + 32 cores + 320 GiB for the start, 77 s, and the wait of the warm container
    price = 2 * 0.001097 + 32 * 0.0000131 + 320 * 0.00000222
    assert result.cost["worst_case_usd"] == pytest.approx(price * (600 + 77 + 60))
    assert any(f"at most ${price * 737:.2f}" in notice for notice in recorder.notices)
    assert 0 < result.cost["estimate_usd"] < result.cost["worst_case_usd"]


def test_without_gpu_and_timeout_a_run_gets_the_documented_defaults(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    result = run_experiment(Environment, {}, backend=backend)
    assert result.results["gpu"] == "A10"
    assert result.results["cache_is_mounted"]
    spec = folder_of(result).read_spec()
    assert (spec.gpu, spec.timeout_s) == ("a10g", 14400)


def test_the_app_is_named_and_tagged_so_that_a_person_finds_the_run(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        result = run_experiment(Greet, {}, backend=backend)
    [app] = [a for a in modal_emulator.apps() if a.description.endswith(result.run_id)]
    assert app.description == f"ml-experiments-{result.run_id}"
    assert app.tags == {"run_id": result.run_id, "experiment": "Greet"}


def test_a_run_that_shares_an_app_is_found_by_a_tag_too(
    modal_emulator: Emulator, recorder: Recorder
) -> None:
    with ModalBackend() as backend:
        first, second = (
            run_experiment(Greet, {"steps": steps}, backend=backend, observer=recorder)
            for steps in (1, 2)
        )
    [app] = [a for a in modal_emulator.apps() if a.description.endswith(first.run_id)]
    assert set(app.tags.values()) == {first.run_id, second.run_id, "Greet"}
    call_id = folder_of(second).read_manifest().to_dict()["modal"]["function_call_id"]
    [link] = [n for n in recorder.notices if n.startswith(f"run {second.run_id} on Modal")]
    assert app.app_id in link
    assert call_id in link


def test_the_container_has_the_documented_environment(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    expected = {
        "HF_HOME": "/cache/huggingface",
        "TRANSFORMERS_CACHE": "/cache/huggingface/transformers",
        "HF_DATASETS_CACHE": "/cache/huggingface/datasets",
        "TORCH_HOME": "/cache/torch",
        "HF_XET_HIGH_PERFORMANCE": "1",
    }
    result = run_experiment(Environment, {"names": list(expected)}, backend=backend)
    assert result.results["variables"] == expected


def test_warm_runs_share_a_container_and_what_they_have_set_up(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    results = [
        run_experiment(Warm, config, backend=backend).raise_for_error().results
        for config in ({"x": 1}, {"x": 2}, {"model": "b"})
    ]
    assert [r["x"] for r in results] == [1, 2, 0]
    assert results[0]["set_up_in"] == results[1]["set_up_in"] != results[2]["set_up_in"]


def test_runs_go_on_side_by_side(modal_emulator: Emulator, backend: ModalBackend) -> None:
    handles = [
        submit_experiment(Counts, {"seconds": 1}, backend=backend, observer=Recorder())
        for _ in range(3)
    ]
    results = [handle.result(WAIT_S) for handle in handles]
    assert [r.status for r in results] == [RunStatus.SUCCESS] * 3
    assert len({r.run_id for r in results}) == 3


def test_a_plain_class_runs_with_its_own_requirements_in_the_image(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend(pip=["timm==1.0.0"]) as backend:
        result = run_experiment(Plain, {"x": 4}, backend=backend)
    assert result.results == {"doubled": 8}
    images = {image.image_id: image for image in modal_emulator.images()}
    packages = images[function_of(modal_emulator, result.run_id).image_id].packages
    assert {"timm==1.0.0", "einops>=0.8"} <= set(packages)


@pytest.mark.parametrize(
    ("how", "kind", "name", "says"),
    [
        ("odd", ErrorKind.EXPERIMENT, "Odd", "only the container knows me"),
        ("oom", ErrorKind.CUDA_OOM, "RuntimeError", "CUDA out of memory"),
        ("sys.exit", ErrorKind.EXPERIMENT, "SystemExit", "4"),
        ("object", ErrorKind.EXPERIMENT, "UnportableResultError", "results.bad"),
        ("exit", ErrorKind.EXPERIMENT, "ProcessExit", "exit code 3"),
        # most often the system's out-of-memory killer
        ("kill", ErrorKind.HOST_OOM, "SIGKILL", "was killed"),
    ],
)
def test_an_error_comes_back_as_data_with_what_the_run_had_so_far(
    modal_emulator: Emulator,
    backend: ModalBackend,
    how: str,
    kind: ErrorKind,
    name: str,
    says: str,
) -> None:
    result = run_experiment(Fails, {"how": how}, backend=backend, observer=Recorder())
    assert result.status is RunStatus.ERROR
    assert result.error is not None
    assert result.error.kind is kind, result.error
    assert name in result.error.type
    assert says in result.error.message
    folder = folder_of(result)
    assert "before the end" in folder.log_file.read_text()
    if how != "exit":  # too soon for a commit
        assert [m["metrics"] for m in folder.read_metrics()] == [{"loss": 0.5}]
        assert (folder.artifacts_dir / "partial.txt").read_text() == "so far"


def test_an_out_of_memory_error_names_the_next_larger_gpu(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    result = run_experiment(Fails, {"how": "oom"}, backend=backend, observer=Recorder())
    assert result.error is not None
    assert "a100" in result.error.hint


def test_a_soft_timeout_keeps_metrics_logs_and_artifacts(modal_emulator: Emulator) -> None:
    with ModalBackend() as backend:
        result = run_experiment(
            Fails, {"how": "soft"}, backend=backend, timeout_s=10, observer=Recorder()
        )
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    assert result.error.type == "SoftTimeout"
    assert result.timings["total_s"] < 10
    folder = folder_of(result)
    assert [m["metrics"] for m in folder.read_metrics()] == [{"loss": 0.5}]
    assert (folder.artifacts_dir / "partial.txt").exists()


def test_a_run_that_ignores_the_soft_timeout_is_ended_by_the_hard_one(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        result = run_experiment(
            Fails, {"how": "hard"}, backend=backend, timeout_s=12, observer=Recorder()
        )
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT
    assert "12 s" in result.error.message
    # committed in the background, while it ran
    folder = folder_of(result)
    assert [m["metrics"] for m in folder.read_metrics()] == [{"loss": 0.5}]
    assert (folder.artifacts_dir / "partial.txt").exists()


def test_a_timeout_that_is_over_before_the_run_starts_is_a_timeout(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    result = run_experiment(Greet, {}, backend=backend, observer=Recorder(), timeout_s=0.01)
    assert result.error is not None
    assert result.error.kind is ErrorKind.TIMEOUT, result.error


def test_a_preempted_run_goes_on_from_its_checkpoint(modal_emulator: Emulator) -> None:
    with ModalBackend() as backend:
        handle = submit_experiment(
            Resumes, {"steps": 12, "step_s": 0.5}, backend=backend, observer=Recorder()
        )
        wait_for_checkpoint(handle.run_id)
        modal_emulator.preempt(grace_s=20)
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert 0 < result.results["started_at"] < 12
    function = function_of(modal_emulator, result.run_id)
    ran_in = [c for c in modal_emulator.containers() if c.function_id == function.function_id]
    assert len(ran_in) == 2
    # the log has both attempts
    log = folder_of(result).log_file.read_text()
    assert "step 0\n" in log
    assert log.endswith("step 11\n")


def test_a_run_whose_container_is_killed_goes_on_from_its_checkpoint(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        handle = submit_experiment(
            Resumes, {"steps": 12, "step_s": 0.5}, backend=backend, observer=Recorder()
        )
        wait_for_checkpoint(handle.run_id)
        # Modal runs the input again, as after a preemption, but without a signal before
        modal_emulator.kill()
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert 0 < result.results["started_at"] < 12
    function = function_of(modal_emulator, result.run_id)
    ran_in = [c for c in modal_emulator.containers() if c.function_id == function.function_id]
    assert [each.end_reason == "killed" for each in ran_in] == [True, False]
    assert folder_of(result).log_file.read_text().endswith("step 11\n")


@pytest.mark.parametrize("how", ["return", "exit", "raise"])
def test_a_preempted_run_runs_again_whatever_it_makes_of_the_interrupt(
    modal_emulator: Emulator, how: str
) -> None:
    seen = Recorder()
    with ModalBackend() as backend:
        handle = submit_experiment(
            difficult.makes_something_of_an_interrupt,
            {"how": how},
            backend=backend,
            observer=seen,
        )
        assert seen.printed.wait(WAIT_S)
        modal_emulator.preempt(grace_s=20)
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.SUCCESS, result.error
    assert result.results == "whole"


@pytest.mark.parametrize(
    ("what", "name"),
    [("base", "Gone"), ("interrupt", "KeyboardInterrupt"), ("async", "CancelledError")],
)
def test_an_ending_that_nobody_asked_for_is_the_experiments_error(
    modal_emulator: Emulator, backend: ModalBackend, what: str, name: str
) -> None:
    result = run_experiment(difficult.ends_by, {"what": what}, backend=backend, observer=Recorder())
    assert result.error is not None
    assert (result.status, result.error.kind) == (RunStatus.ERROR, ErrorKind.EXPERIMENT)
    assert result.error.type == name


def test_artifacts_with_odd_names_come_back_or_are_named(
    modal_emulator: Emulator, backend: ModalBackend, recorder: Recorder
) -> None:
    result = run_experiment(difficult.leaves_odd_files, {}, backend=backend, observer=recorder)
    assert result.results == 1
    artifacts = folder_of(result).artifacts_dir
    names = {file.name for file in artifacts.iterdir()}
    assert names == {"epoch-3.ckpt", "best.ckpt", "with space ü.txt", "empty"}
    assert (artifacts / "best.ckpt").read_text() == "weights"
    assert names <= {Path(artifact.path).name for artifact in result.artifacts}
    [notice] = [n for n in recorder.notices if "could not be read from the volume" in n]
    assert notice.startswith("2 files")
    assert "lost.ckpt" in notice


def test_a_missing_data_file_says_how_data_files_are_sent(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    result = run_experiment(
        difficult.reads_a_file_beside_it, {}, backend=backend, observer=Recorder()
    )
    assert result.error is not None
    assert "with the package that they are in" in result.error.hint


def test_runs_share_a_container_but_no_process(
    modal_emulator: Emulator, backend: ModalBackend
) -> None:
    def run(**config: str) -> RunResult:
        return run_experiment(
            difficult.leaves_something_behind, config, backend=backend, observer=Recorder()
        )

    first = run().results
    assert len(first) == 1
    assert run().results == first
    assert run(fails="an experiment's own").status is RunStatus.ERROR
    assert run().results == first
    # what may have broken the machine leaves it to no other run
    assert run(fails="CUDA error: uncorrectable ECC error encountered").status is RunStatus.ERROR
    assert run().results != first


def test_a_cancelled_run_says_so_and_keeps_what_it_had(
    modal_emulator: Emulator, recorder: Recorder
) -> None:
    with ModalBackend() as backend:
        handle = submit_experiment(Counts, {}, backend=backend, observer=recorder)
        assert recorder.printed.wait(WAIT_S)
        with pytest.raises(TimeoutError):
            handle.result(timeout_s=0.01)
        handle.cancel()
        result = handle.result(WAIT_S)
    assert result.status is RunStatus.CANCELLED
    folder = folder_of(result)
    assert folder.outcome().status is RunStatus.CANCELLED
    assert [m["metrics"] for m in folder.read_metrics()] == [{"seen": 1}]


def test_a_resumed_run_starts_from_the_checkpoints_on_the_volume(
    modal_emulator: Emulator,
) -> None:
    with ModalBackend() as backend:
        first = run_experiment(
            Resumes, {"steps": 60, "step_s": 0.2}, backend=backend, timeout_s=6, seed=3
        )
        assert first.error is not None
        assert first.error.kind is ErrorKind.TIMEOUT
        handle = resume_run(folder_of(first), backend=backend, observer=Recorder())
        second = handle.result(WAIT_S)
    # ended again by the timeout, or finished: either way not from the start
    log = folder_of(second).log_file.read_text()
    assert second.run_id == first.run_id
    assert log.count("step 0\n") == 1


def test_code_is_frozen_when_the_run_is_submitted(
    modal_emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the container starts only after the file has changed
    file = tmp_path / "frozen_exp.py"
    source = "class Which:\n    def __init__(self, c): ...\n    def run(self): return {!r}\n"
    file.write_text(source.format("old"))
    monkeypatch.chdir(tmp_path)
    modal_emulator.delay_starts(2)
    with ModalBackend() as backend:
        handle = submit_experiment(f"{file}:Which", {}, backend=backend, observer=Recorder())
        file.write_text(source.format("new"))
        assert handle.result(WAIT_S).results == "old"


def test_secrets_reach_the_container_and_no_record(
    modal_emulator: Emulator, capfd: pytest.CaptureFixture[str]
) -> None:
    planted, config_secret = "planted-7f3a91c2", "config-key-55d1e0"
    modal.Secret.objects.create("my-secret", {"PLANTED_DSN": planted})
    recorder = Recorder()
    with ModalBackend(secrets=["my-secret"]) as backend:
        result = run_experiment(
            Leaks,
            {"api_key": config_secret, "variable": "PLANTED_DSN"},
            backend=backend,
            observer=recorder,
        )
    function = function_of(modal_emulator, result.run_id)
    assert "my-secret" in {use.name for use in function.secrets}
    assert result.error is not None
    assert result.error.message == "raised <redacted> and <redacted>"
    seen = [json.dumps(result.to_dict()), repr(recorder.__dict__), *capfd.readouterr()]
    seen += [line.text for line in modal_emulator.logs(function.app_id)]
    folder = folder_of(result).path
    seen += [p.read_text(errors="replace") for p in folder.rglob("*") if p.is_file()]
    volume = modal.Volume.from_name("ml-experiments-runs")
    for entry in volume.iterdir(f"/{result.run_id}", recursive=True):
        if entry.type == modal.types.FileEntryType.FILE:
            seen.append(b"".join(volume.read_file(entry.path)).decode(errors="replace"))
    assert any("printed <redacted>" in text for text in seen)
    for text in seen:
        assert planted not in text
        assert config_secret not in text


def test_a_config_value_that_is_also_a_modal_secret_is_taken_out_of_the_spec_here(
    modal_emulator: Emulator,
) -> None:
    modal.Secret.objects.create("path-secret", {"SOME_DSN": "postgres-4be07d55"})
    with ModalBackend(secrets=["path-secret"]) as backend:
        result = run_experiment(
            Greet,
            {"name": "postgres-4be07d55"},
            backend=backend,
            observer=Recorder(),
            name="with postgres-4be07d55",
            tags={"to": "postgres-4be07d55"},
        )
    spec = folder_of(result).read_spec()
    assert spec.config == {"name": "<redacted>", "steps": 2}
    assert (spec.name, spec.tags) == ("with <redacted>", {"to": "<redacted>"})
    assert spec.experiment == "tests.support.modal_experiments:Greet"
    assert spec.import_paths


@pytest.mark.parametrize("form", ["-----BEGIN-----\n{}\n-----END-----", 'abc"{}', "a\\{}"])
def test_a_secret_of_the_config_is_in_no_record_however_it_is_spelt(
    modal_emulator: Emulator, backend: ModalBackend, form: str
) -> None:
    recorder, planted = Recorder(), secrets.token_hex(8)
    result = run_experiment(
        difficult.HoldsSecret,
        {"key": form.format(planted)},
        backend=backend,
        observer=recorder,
    )
    assert result.status is RunStatus.SUCCESS, result.error
    folder = folder_of(result)
    assert folder.log_file.read_text() == "the key is <redacted>\n"
    volume = modal.Volume.from_name("ml-experiments-runs")
    seen = [recorder.lines.decode(), json.dumps(result.to_dict())]
    seen += [p.read_text(errors="replace") for p in folder.path.rglob("*") if p.is_file()]
    for name in ("spec.json", "manifest.json", "log.txt", "result.json"):
        seen.append(b"".join(volume.read_file(f"/{result.run_id}/{name}")).decode())
    assert not [text for text in seen if planted in text]


def test_known_secrets_are_attached_when_they_exist_and_mentioned_when_not(
    modal_emulator: Emulator, recorder: Recorder
) -> None:
    modal.Secret.objects.create("wandb-secret", {"WANDB_API_KEY": "wandb-0123456789"})
    try:
        with ModalBackend() as backend:
            result = run_experiment(
                Environment, {"names": ["WANDB_API_KEY"]}, backend=backend, observer=recorder
            )
        names = {use.name for use in function_of(modal_emulator, result.run_id).secrets}
    finally:
        modal.Secret.objects.delete("wandb-secret")
    assert names == {"wandb-secret"}
    assert result.results["variables"] == {"WANDB_API_KEY": "<redacted>"}
    notices = "\n".join(recorder.notices)
    assert "modal secret create huggingface-secret HF_TOKEN=..." in notices
    assert "wandb-secret" not in notices


def test_a_fallback_list_runs_where_there_is_capacity_and_is_priced_as_the_dearest(
    modal_emulator: Emulator,
) -> None:
    modal_emulator.limit_gpu("B200", 0)
    with ModalBackend() as backend:
        result = run_experiment(Environment, {}, backend=backend, gpu="b200,t4")
    assert result.results["gpu"] == "T4"


def test_an_error_on_the_way_is_a_backend_error_and_the_folder_says_so(
    modal_emulator: Emulator, runs_dir: Path
) -> None:
    modal_emulator.fail_image_builds("no matching distribution: timm==99")
    with ModalBackend(pip=["timm==99"]) as backend, pytest.raises(Error) as e:
        run_experiment(Greet, {}, backend=backend, observer=Recorder())
    assert "the image could not be built" in str(e.value)
    assert "timm==99" in str(e.value)
    [path] = runs_dir.iterdir()
    outcome = RunFolder(path).outcome()
    assert outcome.status is RunStatus.ERROR
    assert outcome.error is not None
    assert outcome.error.kind is ErrorKind.INFRASTRUCTURE


@pytest.mark.parametrize("limit", [{"max_bytes": 1}, {"max_files": 0}])
def test_a_full_volume_is_an_error_that_says_how_to_empty_it(
    modal_emulator: Emulator, limit: dict[str, int]
) -> None:
    modal_emulator.limit_volume("ml-experiments-runs", **limit)
    with ModalBackend() as backend:
        result = run_experiment(Greet, {}, backend=backend, observer=Recorder())
    assert result.status is RunStatus.ERROR
    assert result.error is not None
    assert result.error.kind is ErrorKind.INFRASTRUCTURE
    assert "No space left on device" in result.error.message
    assert "ML_EXPERIMENTS_RUNS_DIR" not in result.error.message
    assert "modal volume rm -r ml-experiments-runs RUN_ID" in result.error.hint
    assert folder_of(result).outcome().error == result.error
