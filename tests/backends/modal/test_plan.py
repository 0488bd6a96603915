"""What is refused before anything is built on Modal, in which words, with which exit code."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modal
import pytest

from ml_experiments.backends.modal.backend import ModalBackend
from ml_experiments.backends.modal.preflight.packages import read_lock
from ml_experiments.errors import BackendError, ConfigError, GpuTypeError, PreflightError
from ml_experiments.runner.prepare import prepare_run
from modal_emulator import Emulator
from tests.support.modal_experiments import Greet, Plain

RunCli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def backend(modal_emulator: Emulator) -> ModalBackend:
    return ModalBackend()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an experiment, as the current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_cli(modal_emulator: Emulator, tmp_path: Path) -> RunCli:
    """Run `ml-experiments run` on Modal with a changed environment."""
    (tmp_path / "quick.py").write_text(
        "class Quick:\n    def __init__(self, c): ...\n    def run(self): return 1\n"
    )

    def run(*options: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
        merged = {**os.environ, **modal_emulator.environment, **environment}
        return subprocess.run(
            [sys.executable, "-m", "ml_experiments", "run", "quick.py:Quick", *options],
            env={k: v for k, v in merged.items() if v is not None},
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=240,
            check=False,
        )

    return run


def write_experiment(folder: Path, imports: str, extra: str = "") -> str:
    source = f"""
        {imports}
        class Exp:
            {extra or "pass"}
            def __init__(self, config): ...
            def run(self): return 1
    """
    (folder / "exp_to_check.py").write_text(textwrap.dedent(source))
    return f"{folder}/exp_to_check.py:Exp"


def check(backend: ModalBackend, experiment: Any, **options: Any) -> Any:
    return prepare_run(experiment, {}, backend=backend, **options).spec


def nothing_was_built(emulator: Emulator, before: int) -> bool:
    return len(emulator.apps()) == before


def test_a_missing_package_is_named_with_every_way_to_add_it(
    modal_emulator: Emulator, backend: ModalBackend, project: Path
) -> None:
    apps = len(modal_emulator.apps())
    # pytest and its friends are installed here, and not in the image
    path = write_experiment(project, "import pytest, numpy\n        import hypothesis.strategies")
    with pytest.raises(PreflightError) as e:
        check(backend, path)
    text = str(e.value)
    assert f"{project}/exp_to_check.py:2 imports pytest: the image has no package 'pytest'" in text
    assert "--pip hypothesis --pip pytest" in text
    assert "requirements = ['hypothesis', 'pytest']" in text
    assert "numpy" not in text
    assert nothing_was_built(modal_emulator, apps)


def test_pip_class_attribute_and_file_each_add_a_package(
    modal_emulator: Emulator, project: Path
) -> None:
    path = write_experiment(
        project, "import pytest, hypothesis, submitit", 'requirements = ["submitit"]'
    )
    file = project / "more.txt"
    file.write_text("hypothesis>=6  # for the data\n")
    check(ModalBackend(pip=["pytest>=8"], requirements=file), path)
    with pytest.raises(PreflightError, match="--pip pytest"):
        check(ModalBackend(requirements=file), path)


def test_a_requirements_attribute_that_is_no_list_is_refused(
    backend: ModalBackend, project: Path
) -> None:
    path = write_experiment(project, "", 'requirements = "timm"')
    with pytest.raises(PreflightError, match=r"write a list such as \['timm>=1.0'\]"):
        check(backend, path)


def test_a_missing_own_module_is_a_problem(backend: ModalBackend, project: Path) -> None:
    (project / "own").mkdir()
    (project / "own" / "__init__.py").touch()
    path = write_experiment(project, "import own\n        def later(): import own.gone")
    with pytest.raises(PreflightError, match=r"imports own\.gone, which is not in"):
        check(backend, path)


def test_an_unknown_gpu_is_refused_with_a_suggestion(backend: ModalBackend) -> None:
    with pytest.raises(GpuTypeError, match="did you mean 'a10g'"):
        check(backend, Greet, gpu="a10gg")


def test_an_empty_gpu_is_not_the_default_one(backend: ModalBackend) -> None:
    with pytest.raises(GpuTypeError, match=r"'' has an empty GPU type. Known: t4, l4, a10g"):
        check(backend, Greet, gpu="")
    assert check(backend, Greet, gpu=None).gpu == "a10g"


def test_a_timeout_beyond_modals_limit_is_refused(backend: ModalBackend) -> None:
    with pytest.raises(BackendError, match="after 24 h"):
        check(backend, Greet, timeout_s=24 * 3600 + 1)


@pytest.mark.parametrize(
    "options", [{"cpu": 0}, {"cpu": True}, {"memory_gib": -1}, {"memory_gib": "4"}]
)
def test_cpu_and_memory_must_be_above_zero(
    modal_emulator: Emulator, options: dict[str, Any]
) -> None:
    name = next(iter(options))
    with pytest.raises(ConfigError, match=f"{name}: given .*> 0"):
        check(ModalBackend(**options), Greet)


def test_a_requested_secret_that_does_not_exist_is_named(modal_emulator: Emulator) -> None:
    with pytest.raises(BackendError, match="no Modal secret 'my-keys'") as e:
        check(ModalBackend(secrets=["my-keys"]), Greet)
    assert "modal secret create my-keys NAME=..." in str(e.value)
    modal.Secret.objects.create("my-keys", {"A": "b"})
    assert check(ModalBackend(secrets=["my-keys"]), Greet).gpu == "a10g"


def test_what_is_not_a_requirement_is_refused(modal_emulator: Emulator) -> None:
    with pytest.raises(PreflightError, match="'-r x' is not a requirement"):
        check(ModalBackend(pip=["-r x"]), Greet)


@pytest.mark.parametrize("way", ["pip", "class", "file"])
def test_a_package_that_the_lock_has_in_another_version_is_refused(
    modal_emulator: Emulator, project: Path, way: str
) -> None:
    torch = read_lock()["torch"]
    apps = len(modal_emulator.apps())
    asked = ["torch==1.0", "timm==1.0", "timm==0.9", f"torch<={torch}"]
    path = write_experiment(project, "", f"requirements = {asked!r}" if way == "class" else "")
    (project / "more.txt").write_text("\n".join(asked))
    options: dict[str, Any] = {"pip": {"pip": asked}, "file": {"requirements": "more.txt"}}
    with pytest.raises(PreflightError) as e:
        check(ModalBackend(**options.get(way, {})), path)
    first, *problems = str(e.value).splitlines()
    assert first == "the packages to add could not be installed on Modal:"
    assert len(problems) == 2
    assert f"torch==1.0: the image has torch {torch}, and its packages keep" in problems[0]
    assert "timm==1.0 and timm==0.9: no version of timm is all of that" in problems[1]
    assert nothing_was_built(modal_emulator, apps)


def test_additions_from_different_places_may_contradict_each_other(
    modal_emulator: Emulator, project: Path
) -> None:
    path = write_experiment(project, "", 'requirements = ["timm>=1"]')
    (project / "more.txt").write_text("timm<0.9\n")
    with pytest.raises(PreflightError, match=r"timm<0\.9 and timm>=1: no version"):
        check(ModalBackend(requirements="more.txt"), path)


def test_every_package_of_a_namespace_is_found(backend: ModalBackend, project: Path) -> None:
    # protobuf gives the image `google`, and nothing below google.cloud
    imports = "import google.protobuf; from google.cloud import storage, bigquery"
    path = write_experiment(project, "", f"def later(self): {imports}")
    with pytest.raises(PreflightError) as e:
        check(backend, path)
    text = str(e.value)
    assert "exp_to_check.py:4 imports google.cloud.storage: the image has no package" in text
    assert "add all with: --pip google-cloud-bigquery --pip google-cloud-storage" in text
    assert "protobuf" not in text
    check(ModalBackend(pip=["google-cloud-bigquery", "google-cloud-storage>=3"]), path)


def test_the_spec_says_what_will_run(backend: ModalBackend) -> None:
    spec = check(backend, Plain, gpu="H100:2, a10", timeout_s=9)
    assert (spec.gpu, spec.timeout_s, spec.backend) == ("h100:2,a10g", 9, "modal")


def test_preflight_imports_no_torch(modal_emulator: Emulator, tmp_path: Path) -> None:
    (tmp_path / "needs_torch.py").write_text(
        "class Exp:\n    def __init__(self, c): ...\n    def run(self):\n        import torch\n"
    )
    code = (
        "import sys\n"
        "from ml_experiments.backends.modal.backend import ModalBackend\n"
        "from ml_experiments.runner.prepare import prepare_run\n"
        "prepare_run('needs_torch.py:Exp', {}, backend=ModalBackend())\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


@pytest.mark.slow
def test_no_token_names_the_command_and_the_local_alternative(
    run_cli: RunCli, tmp_path: Path
) -> None:
    nothing = {"MODAL_TOKEN_ID": None, "MODAL_TOKEN_SECRET": None}
    done = run_cli("--gpu", "a10g", **nothing, MODAL_CONFIG_PATH=str(tmp_path / "none.toml"))
    assert done.returncode == 2
    assert "modal token new" in done.stderr
    assert "--backend local" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_rejected_token_says_so(run_cli: RunCli) -> None:
    done = run_cli("--backend", "modal", MODAL_TOKEN_SECRET="as-wrong")
    assert done.returncode == 2
    assert "Modal rejected the token" in done.stderr
    assert "modal token new" in done.stderr


@pytest.mark.slow
def test_an_environment_that_does_not_exist_says_so(run_cli: RunCli) -> None:
    done = run_cli("--backend", "modal", MODAL_ENVIRONMENT="nope")
    assert done.returncode == 2, done.stderr
    assert "nope" in done.stderr
    assert "modal environment list" in done.stderr


@pytest.mark.slow
def test_a_server_that_is_not_there_says_so(run_cli: RunCli) -> None:
    done = run_cli("--backend", "modal", MODAL_SERVER_URL="http://127.0.0.1:9")
    assert done.returncode == 2
    assert "Modal can't be reached" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_failed_image_build_says_what_to_check(modal_emulator: Emulator, run_cli: RunCli) -> None:
    modal_emulator.fail_image_builds("uv could not find timm==99")
    done = run_cli("--backend", "modal", "--pip", "timm==99")
    assert done.returncode == 2
    assert "error: the image could not be built" in done.stderr
    assert "uv could not find timm==99" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "says"),
    [
        ("RESOURCE_EXHAUSTED", "https://modal.com/settings"),
        ("PERMISSION_DENIED", "ask an owner of the workspace"),
    ],
)
def test_what_modal_does_not_allow_says_what_to_do(
    modal_emulator: Emulator, run_cli: RunCli, status: str, says: str
) -> None:
    modal_emulator.fail_rpc("FunctionCreate", status=status)
    done = run_cli("--backend", "modal")
    assert done.returncode == 2, done.stderr
    assert says in done.stderr


@pytest.mark.slow
def test_a_gpu_that_modal_refuses_says_so(modal_emulator: Emulator, run_cli: RunCli) -> None:
    modal_emulator.fail_rpc("FunctionCreate", status="INVALID_ARGUMENT")
    done = run_cli("--backend", "modal", "--gpu", "b200")
    assert done.returncode == 2, done.stderr
    assert "Modal refused to start the app" in done.stderr


@pytest.mark.slow
def test_the_command_line_runs_on_modal_and_prints_where_to_watch(run_cli: RunCli) -> None:
    done = run_cli("--gpu", "t4", "--json", "--timeout", "5m")
    assert done.returncode == 0, done.stderr
    assert '"results": 1' in done.stdout
    assert "https://modal.com/id/ap-" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpu": "h100:4"}, "Modal gives whole machines only, and 'h100:4' is a part of one; ask"),
        ({}, "'a10g' is a part of one; ask for a10g:4"),
        ({"gpu": "h100:8,a100:4"}, "'a100:4' is a part of one; ask for a100:8"),
        ({"gpu": "a10g:4", "escalate": True}, "ask for l40s:8"),
    ],
)
def test_parts_of_machines_are_refused_for_a_run_on_several(
    backend: ModalBackend, options: dict[str, Any], message: str
) -> None:
    more: dict[str, Any] = {"launch": "torchrun", "nodes": 2, "nproc_per_node": 2}
    with pytest.raises(BackendError) as caught:
        prepare_run(Plain, {}, backend=backend, **more, **options)
    assert message in str(caught.value)


def test_whole_machines_are_what_a_run_on_several_asks_for(backend: ModalBackend) -> None:
    more: dict[str, Any] = {"launch": "torchrun", "nodes": 2, "escalate": "a100-80gb:8,h200:8"}
    prepared = prepare_run(Plain, {}, backend=backend, gpu="a100:8", **more)
    assert (prepared.plan.nodes, prepared.spec.nproc_per_node) == (2, 8)


def test_several_machines_without_a_launcher_are_refused(backend: ModalBackend) -> None:
    with pytest.raises(ConfigError, match="say which one: launch='torchrun' or"):
        prepare_run(Plain, {}, backend=backend, gpu="h100:8", nodes=2)
