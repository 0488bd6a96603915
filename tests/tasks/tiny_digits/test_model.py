"""The tiny-digits model that is shipped, and the config of the experiment that makes it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from ml_experiments.experiment.context import RunContext, set_current_run
from ml_experiments.tasks.tiny_digits import TrainTinyDigits, model_dir
from ml_experiments.tasks.tiny_digits.experiment import CLASS_PATH, training_command
from ml_experiments.tasks.tiny_digits.model_card import render_model_card

Config = TrainTinyDigits.Config
MOST_BYTES = 3_000_000
RECORDED: dict[str, Any] = json.loads((model_dir() / "evaluation.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The networks are too small to gain from more, and lose by threads that wait for a core."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shipped(one_thread: None) -> Any:
    from ml_experiments.tasks.tiny_digits.pipeline_folder import load_pipeline

    return load_pipeline(model_dir())


@pytest.fixture
def silent_run(tmp_path: Path) -> Iterator[None]:
    def ignore(*_: object) -> None:
        return None

    set_current_run(RunContext("test", tmp_path, tmp_path, 0, ignore, ignore))
    yield
    set_current_run(None)


def test_class_and_config_need_none_of_the_packages_that_training_needs() -> None:
    code = """
import sys
blocked = ("torch", "numpy", "diffusers", "transformers", "sklearn", "PIL", "tokenizers")
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
from ml_experiments.tasks.tiny_digits import TrainTinyDigits, model_dir
assert TrainTinyDigits.Config(unet_steps=7).unet_steps == 7
assert (model_dir() / "model_index.json").is_file()
try:
    TrainTinyDigits.Config(unet_step=7)
except ValueError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "unet_step\n  Extra inputs are not permitted" in done.stdout


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vae_steps", 1),
        ("vae_batch_size", 0),
        ("vae_learning_rate", 0),
        ("unet_steps", 1),
        ("unet_batch_size", 0),
        ("unet_learning_rate", -1e-3),
        ("checkpoint_every_steps", 0),
        ("log_every_steps", 0),
        ("judge_prompts", 1),
        ("cpu_threads", 0),
        ("output_name", "../elsewhere"),
        ("output_name", ""),
    ],
)
def test_config_refuses_a_value_that_cannot_work_and_names_its_field(
    field: str, value: object
) -> None:
    with pytest.raises(pydantic.ValidationError, match=field):
        Config.model_validate({field: value})


def test_training_command_names_only_what_differs_from_the_defaults() -> None:
    assert training_command(Config(), 0) == f"ml-experiments run {CLASS_PATH} --seed 0"
    assert training_command(Config(unet_steps=5, output_name="x"), 3) == (
        f"ml-experiments run {CLASS_PATH} unet_steps=5 'output_name=\"x\"' --seed 3"
    )


def test_shipped_model_is_at_most_three_megabytes() -> None:
    assert sum(f.stat().st_size for f in model_dir().rglob("*") if f.is_file()) <= MOST_BYTES


def test_shipped_card_says_what_was_recorded_and_names_the_command_that_made_it() -> None:
    card = (model_dir() / "README.md").read_text(encoding="utf-8")
    assert card == render_model_card(RECORDED)
    command = f"ml-experiments run {CLASS_PATH} --seed 0"
    assert f"```\n{command}\n```" in card
    assert RECORDED["command"] == command == training_command(Config(), RECORDED["seed"])
    assert RECORDED["config"] == Config().model_dump()
    pytest.importorskip("torch")  # a run on this machine without it is refused at once
    pytest.importorskip("sklearn")
    program, *arguments = shlex.split(command)
    dry_run = subprocess.run(
        [Path(sys.executable).with_name(program), *arguments, "--dry-run"],
        capture_output=True,
        text=True,
        check=True,
    )
    spec = json.loads(dry_run.stdout)
    assert (spec["config"], spec["seed"]) == (RECORDED["config"], RECORDED["seed"])


@pytest.mark.slow
def test_shipped_model_draws_the_digit_and_colour_that_are_asked_for_in_any_wording(
    silent_run: None, one_thread: None
) -> None:
    from ml_experiments.tasks.tiny_digits.digits import load_split
    from ml_experiments.tasks.tiny_digits.evaluation import evaluate

    training, held_out = load_split()
    measured = evaluate(model_dir(), training, held_out, 40, "cpu")
    for wordings in ("known_wordings", "unseen_wordings"):
        for accuracy in ("digit_accuracy", "colour_accuracy"):
            assert measured[wordings][accuracy] >= 0.95, (wordings, accuracy)
            assert RECORDED[wordings][accuracy] >= 0.95, (wordings, accuracy)
    for exact in ("parameters", "tokens", "weights_bytes"):
        assert measured[exact] == RECORDED[exact]
    for close in ("judge_accuracy", "reconstruction_mse"):
        assert measured[close] == pytest.approx(RECORDED[close], rel=0.01)


@pytest.mark.slow
def test_shipped_model_repeats_its_pixels_for_a_seed_and_changes_them_with_it(shipped: Any) -> None:
    from ml_experiments.tasks.tiny_digits.evaluation import generate

    prompts = ["a red handwritten seven"] * 4
    first = generate(shipped, prompts)
    assert np.array_equal(first, generate(shipped, prompts))
    assert len({picture.tobytes() for picture in first}) == 4
    alone = generate(shipped, prompts[:1], first_seed=2)[0]
    assert np.abs(alone.astype(int) - first[2].astype(int)).max() <= 1


@pytest.mark.slow
def test_shipped_model_loads_as_any_text_to_image_model(shipped: Any) -> None:
    import torch
    from diffusers import AutoPipelineForText2Image

    automatic = AutoPipelineForText2Image.from_pretrained(model_dir(), dtype=torch.float32)
    assert type(automatic) is type(shipped)
    assert automatic.vae.config.scaling_factor == 1.0
