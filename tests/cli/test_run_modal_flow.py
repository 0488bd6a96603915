"""What `ml-experiments run` requests from Modal, read from what the emulator received."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import modal
import pytest

from ml_experiments.backends.modal.image import TOOLKIT_BASE
from modal_emulator import Emulator
from tests.support.modal_runs import run_command

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(modal_emulator: Emulator, tmp_path: Path) -> Run:
    """Run `ml-experiments run mine.train` with more options, in a folder that has it."""
    (tmp_path / "mine.py").write_text("def train(config): return dict(config)\n")

    def call(*options: str) -> subprocess.CompletedProcess[str]:
        return run_command(modal_emulator, tmp_path, "run", "mine.train", *options)

    return call


def test_every_option_about_the_container_reaches_modal(
    modal_emulator: Emulator, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "more.txt").write_text("einops>=0.8\n")
    modal.Secret.objects.create("cli-secret", {"CLI_SECRET": "cli-5a17f0c3"})
    done = run(
        *("--gpu", "l4:2,t4", "--timeout", "3m", "--cpu", "2", "--memory", "3"),
        *("--secret", "cli-secret", "--pip", "timm==1.0.0", "--requirements", "more.txt"),
        "--cuda-toolkit",
    )
    assert done.returncode == 0, done.stderr
    function = modal_emulator.functions("run_remote")[-1]
    assert function.gpus == ("L4:2", "T4")
    assert function.timeout_s == 180
    assert function.cpu is not None
    assert function.cpu[0] == 2
    assert function.memory_mb is not None
    assert function.memory_mb[0] == 3 * 1024
    assert "cli-secret" in {use.name for use in function.secrets}
    images = {image.image_id: image for image in modal_emulator.images()}
    image = images[function.image_id]
    assert {"timm==1.0.0", "einops>=0.8"} <= set(image.packages)
    assert image.base == TOOLKIT_BASE


@pytest.mark.parametrize(
    ("given", "gib"), [("1.5", 1.5), ("16GiB", 16), ("512MiB", 0.5), ("16 gb", 16e9 / 2**30)]
)
def test_memory_is_in_gib_or_in_the_unit_that_is_given(run: Run, given: str, gib: float) -> None:
    done = run("--dry-run", "--backend", "modal", "--memory", given)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backend_options"]["memory_gib"] == pytest.approx(gib)


def test_without_options_the_image_is_the_small_one(modal_emulator: Emulator, run: Run) -> None:
    done = run("--backend", "modal")
    assert done.returncode == 0, done.stderr
    function = modal_emulator.functions("run_remote")[-1]
    assert function.gpus == ("A10",)
    images = {image.image_id: image for image in modal_emulator.images()}
    assert "nvidia" not in images[function.image_id].base


def test_name_tags_seed_and_config_are_the_runs(run: Run) -> None:
    done = run("x=3", "--gpu", "t4", "--name", "first", "--tag", "a=b", "--seed", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["results"] == {"x": 3}
    spec = json.loads((Path(result["run_dir"]) / "spec.json").read_text())
    assert (spec["name"], spec["tags"], spec["seed"]) == ("first", {"a": "b"}, 5)


def test_a_resumed_run_gets_the_container_that_the_first_one_had(
    modal_emulator: Emulator, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from ml_experiments import current_run\n"
        "def train(config):\n"
        "    been_here = current_run().checkpoint_dir / 'been_here'\n"
        "    if not been_here.exists():\n"
        "        been_here.touch()\n"
        "        raise RuntimeError('not yet')\n"
        "    return 'resumed'\n"
    )
    (tmp_path / "more.txt").write_text("einops>=0.8\n")
    modal.Secret.objects.create("resume-secret", {"RESUME_SECRET": "resume-93bd01e6"})
    options = ("--cpu", "3", "--memory", "2", "--pip", "timm==1.0.0", "--cuda-toolkit")
    more = ("--requirements", "more.txt", "--secret", "resume-secret")
    assert run("--gpu", "l4", "--timeout", "5m", *options, *more).returncode == 1
    first = modal_emulator.functions("run_remote")[-1]
    (tmp_path / "more.txt").unlink()  # as it was when the run was submitted
    done = run_command(modal_emulator, tmp_path, "runs", "resume", "last", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"] == "resumed"
    second = modal_emulator.functions("run_remote")[-1]
    assert second.function_id != first.function_id
    for what in ("gpus", "timeout_s", "cpu", "memory_mb", "secrets", "image_id"):
        assert getattr(second, what) == getattr(first, what), what


def test_a_dry_run_starts_nothing_on_modal(modal_emulator: Emulator, run: Run) -> None:
    before = len(modal_emulator.apps())
    done = run("x=3", "--gpu", "h100", "--dry-run")
    assert done.returncode == 0, done.stderr
    spec = json.loads(done.stdout)
    assert (spec["backend"], spec["gpu"], spec["config"]) == ("modal", "h100", {"x": 3})
    assert len(modal_emulator.apps()) == before
    forecast = spec["forecast"]
    assert 0 < forecast["estimate_usd"] < forecast["worst_case_usd"]
    assert forecast["estimated_from"] == "the timeout"


def test_an_empty_gpu_type_is_a_mistake_and_not_the_default(run: Run) -> None:
    done = run("--gpu", "")  # such as a shell variable that isn't set
    assert done.returncode == 2
    assert "empty GPU type. Known: t4, l4, a10g" in done.stderr


def test_a_package_that_only_the_container_misses_is_added_with_pip(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text("def train(config): __import__('absent_' + 'package')\n")
    done = run("--gpu", "l4")
    assert done.returncode == 1, done.stderr
    shown = " ".join(done.stdout.split())
    assert "the emulator has this machine's packages: pip install absent_package" in shown
    assert "add it with --pip absent_package" in shown
    assert "A module of your own is sent along where an import statement names it" in shown
