"""The documented entry point, from Python, `modal run`, `modal deploy` and other processes."""

from __future__ import annotations

import datetime
import inspect
import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import modal
import pytest

from ml_experiments.backends.modal.image import CORE_PACKAGES, LOCK_FILE, TOOLKIT_BASE
from ml_experiments.backends.modal.mounts import ENVIRONMENT
from ml_experiments.backends.modal.preflight.packages import read_lock
from ml_experiments.core import modal_runner
from ml_experiments.core.modal_runner import (
    GPU_CONFIGS,
    app,
    cache_operation,
    clear_cache,
    create_gpu_function,
    list_cached_models,
    run_experiment_local,
)
from ml_experiments.errors import AuthError, ConfigError, Error, ExperimentPathError, GpuTypeError
from modal_emulator import Emulator
from tests.core.conftest import Modal
from tests.support.hub_server import HubServer

RUNNER = Path(modal_runner.__file__)
GREET = "tests.support.modal_experiments.Greet"
ENVIRONMENT_OF_RUN = "tests.support.modal_experiments.Environment"

slow = pytest.mark.slow


def write(project: Path, name: str, source: str) -> str:
    (project / name).write_text(textwrap.dedent(source))
    return name


def newest(emulator: Emulator, name: str) -> Any:
    return emulator.functions(name)[-1]


def fill_cache(hub: HubServer, *names: str) -> None:
    """Download repositories into the cache volume, in containers, as runs do."""
    pull = cache_operation.with_options(secrets=[modal.Secret.from_dict(hub.environment())])
    for name in names:
        hub.add_repo(name, {"config.json": b"{}", "model.safetensors": name.encode() * 100_000})
        pull.remote("pull", {"name": name})


def was_cached(result: dict[str, Any]) -> bool:
    """Return whether a run found its model in the cache."""
    manifest = json.loads((Path(result["run_dir"]) / "manifest.json").read_text())
    return bool(manifest["cached_models"][0]["hit"])


def test_the_documented_names_have_the_documented_signatures() -> None:
    local = inspect.signature(run_experiment_local).parameters
    assert list(local)[:4] == ["experiment_config", "experiment_class_path", "gpu_type", "timeout"]
    assert local["gpu_type"].default == "a10g"
    assert local["timeout"].default == 14400
    assert [p.kind for p in list(local.values())[4:]] == [inspect.Parameter.VAR_KEYWORD]
    declared = inspect.signature(create_gpu_function).parameters
    assert {n: p.default for n, p in list(declared.items())[:4]} == {
        "gpu_type": "a10g",
        "timeout": 3600,
        "cpu": None,
        "memory": None,
    }
    assert set(GPU_CONFIGS) >= {"t4", "a10g", "a100", "a100-80gb", "h100", "l4", "a10", "b200"}
    assert modal_runner.hf_cache_volume.name == "hf-model-cache"


def test_the_toolkit_image_has_the_cuda_version_of_the_locked_pytorch() -> None:
    version = TOOLKIT_BASE.partition(":")[2].partition("-")[0].rsplit(".", 1)[0]
    assert read_lock()["cuda-toolkit"].startswith(f"{version}.")


def test_the_small_image_has_what_this_package_needs() -> None:
    import tomllib

    project = tomllib.loads((RUNNER.parents[2] / "pyproject.toml").read_text())["project"]
    needed = {
        dependency.partition(">")[0].lower().replace("_", "-")
        for dependency in project["dependencies"]
    }
    assert set(CORE_PACKAGES) == needed


@slow
def test_run_experiment_local_returns_the_documented_keys(
    modal_emulator: Emulator, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run_experiment_local({"name": "Ada"}, GREET, gpu_type="l4", timeout=300, seed=5)
    assert result["status"] == "success"
    assert result["experiment_class"] == GREET
    assert result["results"]["greeting"] == "hello Ada"
    assert result["results"]["seed"] == 5
    assert result["error"] is None
    assert set(result) == {
        *("status", "results", "experiment_class"),
        *("run_id", "error", "artifacts", "timings", "cost", "environment", "run_dir"),
        *("attempts", "is_reused"),
    }
    [artifact] = result["artifacts"]
    assert (Path(result["run_dir"]) / artifact["path"]).read_text() == "hello Ada"
    json.dumps({**result, "results": None}, allow_nan=False)  # results are Python values
    printed = capfd.readouterr()
    assert "greeting Ada, step 1" in printed.out
    assert "2/2 greeting" in printed.err
    assert "https://modal.com/id/" in printed.err
    function = newest(modal_emulator, "run_remote")
    assert function.gpus == ("L4",)
    assert function.timeout_s == 300


@slow
@pytest.mark.usefixtures("modal_emulator")
def test_run_experiment_local_returns_values_of_python(tmp_path: Path) -> None:
    (tmp_path / "values.py").write_text(
        "import datetime, math\n"
        "def values(config):\n"
        "    return {'loss': math.nan, 'day': datetime.date(2026, 1, 2), 1: {'a'}}\n"
    )
    result = run_experiment_local({}, f"{tmp_path / 'values.py'}:values")
    assert math.isnan(result["results"].pop("loss"))
    assert result["results"] == {"day": datetime.date(2026, 1, 2), 1: {"a"}}
    recorded = json.loads((Path(result["run_dir"]) / "result.json").read_text())["results"]
    assert {"$type": "date", "value": "2026-01-02"} in recorded["items"][1]


@slow
def test_further_arguments_of_run_experiment_local_take_effect(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    modal.Secret.objects.create("further", {"FURTHER": "value-of-further"}, allow_existing=True)
    requirements = tmp_path / "more.txt"
    requirements.write_text("einops\n")
    result = run_experiment_local(
        {"names": ["FURTHER"]},
        ENVIRONMENT_OF_RUN,
        name="a name",
        tags={"team": "vision"},
        secrets=["further"],
        pip=["timm"],
        requirements=requirements,
        cpu=3,
        memory_gib=5,
        cuda_toolkit=True,
        runs_dir=tmp_path / "elsewhere",
    )
    assert result["results"]["variables"] == {"FURTHER": "<redacted>"}
    run_dir = Path(result["run_dir"])
    assert run_dir.parent == tmp_path / "elsewhere"
    spec = json.loads((run_dir / "spec.json").read_text())
    assert (spec["name"], spec["tags"]) == ("a name", {"team": "vision"})
    function = newest(modal_emulator, "run_remote")
    [image] = [i for i in modal_emulator.images() if i.image_id == function.image_id]
    assert {"timm", "einops"} <= set(image.packages)
    assert image.base == TOOLKIT_BASE
    assert function.cpu is not None
    assert function.memory_mb is not None
    assert (function.cpu[0], function.memory_mb[0]) == (3, 5 * 1024)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"timeout": 0}, "timeout is 0; it must be a whole number of seconds from 1 to 86400"),
        ({"timeout": -5}, "timeout is -5"),
        ({"timeout": 86_401}, "24 h, after which Modal ends every call; save checkpoints"),
        ({"timeout": 0.5}, "timeout is 0.5"),
        ({"timeout": True}, "timeout is True"),
        ({"timeout": "3600"}, "timeout is '3600'"),
        ({"timeout": None}, "timeout is None"),
        ({"gpu_type": ""}, "'' has an empty GPU type. Known: t4, l4, a10g"),
        ({"secrets": "my-keys"}, r"write a list: secrets=\['my-keys'\]"),
        ({"pip": "timm"}, r"write a list: pip=\['timm'\]"),
        ({"pip": [5]}, "pip.0: given 5: it must be a valid string"),
        ({"pip": None}, "pip: given None"),
        ({"secrets": [""]}, "at least 1 character"),
        ({"tags": ["a"]}, "tags: given"),
        ({"tags": {"a": 1}}, "tags.a: given 1"),
        ({"name": 5}, "name: given 5"),
        ({"pip": ["torch==1.0"]}, f"the image has torch {read_lock()['torch']}"),
    ],
)
def test_an_argument_that_cannot_work_is_refused(
    modal_emulator: Emulator, arguments: dict[str, Any], says: str
) -> None:
    apps = len(modal_emulator.apps())
    with pytest.raises(Error, match=says):
        run_experiment_local({}, GREET, **arguments)
    assert len(modal_emulator.apps()) == apps


@slow
def test_no_gpu_type_is_the_default_one(modal_emulator: Emulator) -> None:
    result = run_experiment_local({}, GREET, gpu_type=None, timeout=600.0)  # type: ignore[arg-type]
    assert result["status"] == "success"
    assert newest(modal_emulator, "run_remote").gpus == ("A10",)
    assert newest(modal_emulator, "run_remote").timeout_s == 600


@slow
def test_mistakes_are_raised_before_anything_starts(modal_emulator: Emulator) -> None:
    apps = len(modal_emulator.apps())
    with pytest.raises(ConfigError, match="nam"):
        run_experiment_local({"nam": 1}, GREET)
    with pytest.raises(ExperimentPathError, match="did you mean 'Greet'"):
        run_experiment_local({}, f"{GREET}e")
    with pytest.raises(GpuTypeError, match="did you mean 'h100'"):
        run_experiment_local({}, GREET, gpu_type="h1000")
    assert len(modal_emulator.apps()) == apps


@pytest.mark.parametrize(
    ("gpu", "error"), [("a10gg", "GpuTypeError: 'a10gg' is not a GPU"), ("a10g", "AuthError")]
)
def test_without_a_token_a_typo_is_told_before_it(gpu: str, error: str, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("def job(config): return 1\n")
    code = (
        "from ml_experiments.core.modal_runner import run_experiment_local\n"
        f"run_experiment_local({{}}, 'job.job', gpu_type={gpu!r})\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "MODAL_CONFIG_PATH": str(tmp_path / "none.toml")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{AuthError.__module__}.{error}")
    if error == "AuthError":
        assert "modal token new" in last
        assert '--backend local, or in Python backend="local"' in last
    assert done.stderr.count("Traceback") == 1  # not of Modal's client, too


@slow
def test_the_parts_compose_as_in_the_documents_multi_gpu_example(
    modal_emulator: Emulator, project: Path, run_modal: Modal
) -> None:
    file = write(
        project,
        "multi.py",
        """
        from ml_experiments.core.modal_runner import app, gpu_image, hf_cache_volume

        @app.function(
            image=gpu_image.uv_pip_install("einops"),  # and steps can still be added
            gpu="A100:2",
            volumes={"/cache": hf_cache_volume},
            timeout=7200,
        )
        def multi_gpu_training():
            import os
            print("GPUs:", os.environ["MODAL_EMULATOR_GPU_COUNT"])
        """,
    )
    assert "GPUs: 2" in run_modal("run", f"{file}::multi_gpu_training")
    function = newest(modal_emulator, "multi_gpu_training")
    assert function.gpus == ("A100:2",)
    [image] = [i for i in modal_emulator.images() if i.image_id == function.image_id]
    assert image.env.items() >= ENVIRONMENT.items()
    assert "einops" in image.packages
    assert LOCK_FILE.read_text() in image.context_files.values()
    assert image.python_version == "3.11"


@slow
def test_the_cache_functions_work_from_python_and_from_the_shell(
    empty_cache: Emulator, run_modal: Modal
) -> None:
    with HubServer() as hub, app.run():
        fill_cache(hub, "org/one", "org/two", "other/three")
        assert list_cached_models.remote() == ["org/one", "org/two", "other/three"]
        planned = clear_cache.remote(pattern="org/*", force=False)
        assert (planned["deleted"], planned["dry_run"]) == (2, True)
        assert planned["freed_mb"] > 1
        assert list_cached_models.remote() == ["org/one", "org/two", "other/three"]
        done = clear_cache.remote(pattern="org/*", force=True)
    assert (done["deleted"], done["dry_run"]) == (2, False)
    assert done["freed_mb"] == planned["freed_mb"]

    listed = run_modal("run", f"{RUNNER}::list_cached_models")
    assert "other/three" in listed
    assert "org/one" not in listed
    assert "would delete 1 models" in run_modal("run", f"{RUNNER}::clear_cache")
    options = ("--pattern", "other/*", "--force")
    assert "deleted 1 models" in run_modal("run", f"{RUNNER}::clear_cache", *options)
    assert "the cache holds no models" in run_modal("run", f"{RUNNER}::list_cached_models")


@slow
def test_a_model_that_a_run_downloads_is_cached_for_the_next(modal_emulator: Emulator) -> None:
    pytest.importorskip("torch")
    from ml_experiments.tasks.tiny_digits import model_dir

    with HubServer() as hub:
        hub.add_repo("org/tiny", Path(model_dir()))
        hub.add_repo("org/ahead", Path(model_dir()))
        modal.Secret.objects.create("huggingface-secret", hub.environment())
        try:
            config = {"model_name": "org/tiny", "prompt": "a red seven", "num_inference_steps": 1}
            path = "ml_experiments.tasks.text_to_image.TextToImageExperiment"
            first = run_experiment_local(config, path)
            assert first["status"] == "success", first["error"]
            downloads = sum(r.method == "GET" and "/resolve/" in r.path for r in hub.requests)
            assert downloads > 0
            second = run_experiment_local(config, path)
            assert second["status"] == "success", second["error"]
            again = sum(r.method == "GET" and "/resolve/" in r.path for r in hub.requests)
            assert again == downloads
            ahead = run_experiment_local({**config, "model_name": "org/ahead"}, path, prefetch=True)
            assert ahead["status"] == "success", ahead["error"]
            # downloaded by the run itself, found there, and downloaded before the run began
            assert [was_cached(r) for r in (first, second, ahead)] == [False, True, True]
        finally:
            modal.Secret.objects.delete("huggingface-secret")
    with app.run():
        assert "org/tiny" in list_cached_models.remote()
        clear_cache.remote(force=True)


@slow
def test_modal_run_of_an_experiment_says_what_is_wrong_with_its_config(
    modal_emulator: Emulator, run_modal: Modal
) -> None:
    path = "ml_experiments.tasks.text_to_image.TextToImageExperiment"
    for config, says in (("{", "experiment_config is not JSON"), ('{"promt": 1}', "prompt")):
        options = ("--experiment-config", config, "--experiment-class-path", path)
        assert says in run_modal("run", f"{RUNNER}::run_experiment", *options, exit_code=1)


@slow
@pytest.mark.parametrize(
    ("name", "config", "code"),
    [("", {"device": "cuda"}, 1), ("::run", {"num_inference_steps": 1}, 0)],
)
def test_modal_run_of_the_file_exits_with_what_became_of_the_run(
    name: str, config: dict[str, Any], code: int, run_modal: Modal
) -> None:
    pytest.importorskip("torch")
    path = "ml_experiments.tasks.text_to_image.TextToImageExperiment"
    given = json.dumps({"prompt": "a red seven", **config})
    options = ("--experiment-config", given, "--experiment-class-path", path)
    assert '"status"' in run_modal("run", f"{RUNNER}{name}", *options, exit_code=code)


@slow
def test_a_deployed_app_is_called_from_another_process_by_name(
    modal_emulator: Emulator, project: Path, run_modal: Modal
) -> None:
    pytest.importorskip("torch")
    run_modal("deploy", str(RUNNER))
    file = write(
        project,
        "caller.py",
        """
        import json, modal
        run = modal.Function.from_name("ml-experiments", "run_experiment").with_options(gpu="T4")
        result = run.remote(
            {"prompt": "a red seven", "num_inference_steps": 1},
            "ml_experiments.tasks.text_to_image.TextToImageExperiment",
            seed=7,
        )
        print(json.dumps(result))
        """,
    )
    done = subprocess.run(
        [sys.executable, file], cwd=project, capture_output=True, text=True, timeout=240, check=True
    )
    result = json.loads(done.stdout)
    assert result["status"] == "success"
    volume = modal.Volume.from_name("ml-experiments-runs")
    stored = b"".join(volume.read_file(f"{result['run_id']}/result.json"))
    assert json.loads(stored)["status"] == "success"
    spec = b"".join(volume.read_file(f"{result['run_id']}/spec.json"))
    assert json.loads(spec)["seed"] == 7
    gpus = {info.gpus for info in modal_emulator.functions("run_experiment")}
    assert ("T4",) in gpus
