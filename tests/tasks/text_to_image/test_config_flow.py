"""Every field of TextToImageExperiment's config: its effect, or why it can't have one here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from safetensors.numpy import load_file, save_file

from ml_experiments import ConfigError, LocalBackend, run_experiment
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.tiny_digits import model_dir
from tests.support.pictures import (
    PROMPT,
    LooksInside,
    Pixels,
    difference,
    draw,
    make_lora,
    make_model,
    pixels,
    refusals,
)

pytestmark = pytest.mark.slow

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def plain(warm_backend: LocalBackend) -> Pixels:
    return pixels(draw(warm_backend, num_images=4))


@pytest.fixture
def own_model(tmp_path: Path) -> Path:
    """A copy of tiny-digits that a test may change."""
    return Path(shutil.copytree(model_dir(), tmp_path / "own-model"))


def dampen(source: Path, target: Path) -> None:
    """Write weights that draw something else."""
    weights = {name: weight * np.float16(0.9) for name, weight in load_file(source).items()}
    save_file(weights, target)


@pytest.mark.parametrize(
    "change",
    [
        {"guidance_scale": 6.0},
        {"num_inference_steps": 5},
        {"negative_prompt": "a red handwritten seven"},
        {"seed": 9},
        {"prompt": "a blue handwritten two"},
        {"scheduler": "ddpm"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_field_changes_the_pictures(
    warm_backend: LocalBackend, plain: Pixels, change: dict[str, Any]
) -> None:
    result = draw(warm_backend, num_images=4, **change)
    assert difference(plain, pixels(result)) > 20
    effective = {name: value for name, value in change.items() if name in result.results}
    effective.pop("scheduler", None)
    assert {name: result.results[name] for name in effective} == effective


@pytest.mark.parametrize(
    ("asked", "drawn"),
    [
        ({"height": 64}, (64, 32)),
        ({"width": 48}, (32, 48)),
        ({"height": 40, "width": 64}, (40, 64)),
    ],
    ids=str,
)
def test_pictures_have_the_height_and_width_asked_for(
    warm_backend: LocalBackend, asked: dict[str, int], drawn: tuple[int, int]
) -> None:
    result = draw(warm_backend, **asked)
    assert pixels(result).shape == (1, *drawn, 3)
    assert (result.results["height"], result.results["width"]) == drawn


@pytest.mark.parametrize(
    "name",
    [
        "DDPM",
        "DEISMultistep",
        "DPMSolverMultistep",
        "DPMSolverSinglestep",
        "EulerAncestralDiscrete",
        "EulerDiscrete",
        "HeunDiscrete",
        "KDPM2AncestralDiscrete",
        "KDPM2Discrete",
        "LMSDiscrete",
        "PNDM",
        "UniPCMultistep",
    ],
)
def test_scheduler_draws_the_same_at_every_batch_size(
    warm_backend: LocalBackend, name: str
) -> None:
    chosen = {"scheduler": f"{name}Scheduler", "num_images": 3, "num_inference_steps": 4}
    alone = draw(warm_backend, batch_size=1, **chosen)
    together = draw(warm_backend, batch_size=3, **chosen)
    assert alone.results["scheduler"] == f"{name}Scheduler"
    assert difference(pixels(alone), pixels(together)) <= 1


def test_without_a_scheduler_a_warm_run_uses_the_models_own_again(
    warm_backend: LocalBackend, plain: Pixels
) -> None:
    draw(warm_backend, scheduler="EulerAncestralDiscreteScheduler").raise_for_error()
    result = draw(warm_backend, num_images=4)
    assert result.results["scheduler"] == "DDIMScheduler"
    assert difference(plain, pixels(result)) == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype_computes_in_that_format(
    warm_backend: LocalBackend, plain: Pixels, dtype: str
) -> None:
    result = draw(warm_backend, LooksInside, num_images=4, dtype=dtype)
    assert result.results["unet_dtype"] == f"torch.{dtype}"
    assert result.results["dtype"] == dtype
    assert 0 < np.abs(plain - pixels(result)).mean() < 3


def test_int8_quantization_draws_nearly_the_same(warm_backend: LocalBackend, plain: Pixels) -> None:
    result = draw(warm_backend, num_images=4, quantization="int8", num_inference_steps=2)
    assert result.results["quantized_layers"] > 10
    assert 0 < np.abs(plain - pixels(result)).mean() < 3


def test_attention_slicing_slices_only_while_it_is_asked_for(
    warm_backend: LocalBackend, plain: Pixels
) -> None:
    sliced = draw(warm_backend, LooksInside, num_images=4, attention_slicing=True)
    whole = draw(warm_backend, LooksInside, num_images=4)
    assert sliced.results["attention"] == ["SlicedAttnProcessor"]
    assert whole.results["attention"] == ["AttnProcessor2_0"]
    assert difference(plain, pixels(sliced)) <= 1


def test_vae_tiling_decodes_large_pictures_in_tiles_only_while_it_is_asked_for(
    warm_backend: LocalBackend,
) -> None:
    large = {"height": 96, "width": 96, "num_inference_steps": 4}
    before = draw(warm_backend, LooksInside, **large)
    tiled = draw(warm_backend, LooksInside, vae_tiling=True, **large)
    after = draw(warm_backend, LooksInside, **large)
    assert [run.results["vae_tiles"] for run in (before, tiled, after)] == [False, True, False]
    assert difference(pixels(before), pixels(tiled)) > 0
    assert difference(pixels(before), pixels(after)) == 0


def test_lora_changes_the_pictures(
    warm_backend: LocalBackend, plain: Pixels, tmp_path: Path
) -> None:
    file = make_lora(warm_backend)
    by_file = pixels(draw(warm_backend, num_images=4, lora=str(file)))
    by_folder = pixels(draw(warm_backend, num_images=4, lora=str(file.parent)))
    assert difference(plain, by_file) > 20
    assert difference(by_file, by_folder) == 0
    quantized = draw(warm_backend, num_images=4, lora=str(file), quantization="int8")
    assert np.abs(by_file - pixels(quantized)).mean() < 3


def test_lora_that_does_not_fit_is_refused(warm_backend: LocalBackend, tmp_path: Path) -> None:
    (tmp_path / "several").mkdir()
    for name in ("a", "b"):
        save_file({"x": np.zeros(1)}, tmp_path / "several" / f"{name}.safetensors")
    wide = make_lora(warm_backend, fits=False)
    foreign = make_lora(warm_backend, prefix="transformer")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not a safetensors file")
    answers = refusals(
        warm_backend,
        {"lora": str(wide)},
        {"lora": str(foreign)},
        {"lora": str(damaged)},
        {"lora": str(tmp_path / "several")},
        {"lora": str(tmp_path / "absent.safetensors")},
    )
    assert all(answer.startswith("setup: ConfigError: lora=") for answer in answers), answers
    for answer in answers[:3]:
        assert "choose a LoRA that was trained on this model" in answer
    assert "it has a.safetensors, b.safetensors: name one" in answers[3]
    assert "nothing is there" in answers[4]


def test_local_folder_is_a_model(warm_backend: LocalBackend, own_model: Path) -> None:
    dampen(own_model / "unet" / WEIGHTS, own_model / "unet" / WEIGHTS)
    same = {"num_images": 4, "guidance_scale": 3.0}
    changed = draw(warm_backend, model_name=str(own_model), **same)
    assert difference(pixels(draw(warm_backend, **same)), pixels(changed)) > 5
    assert changed.results["model_revision"] is None


def test_variant_chooses_the_weights(warm_backend: LocalBackend, own_model: Path) -> None:
    for part, name in {
        "unet": WEIGHTS,
        "vae": WEIGHTS,
        "text_encoder": "model.safetensors",
    }.items():
        file = own_model / part / name
        target = file.with_suffix(".ema.safetensors")
        if part == "unet":
            dampen(file, target)
        else:
            shutil.copy(file, target)
    plain, ema = (
        pixels(draw(warm_backend, model_name=str(own_model), variant=variant))
        for variant in (None, "ema")
    )
    assert difference(plain, ema) > 5


def test_what_this_machine_cannot_do_is_refused(warm_backend: LocalBackend) -> None:
    answers = refusals(
        warm_backend,
        {"cpu_offload": True},
        {"quantization": "int4"},
        {"device": "cuda"},
        {"device": "mps"},
        {"scheduler": "eular"},
        {"num_inference_steps": 1001},
    )
    starts = ["cpu_offload=true", "quantization=int4 needs a CUDA GPU", "device=cuda", "device=mps"]
    for start, answer in zip(starts, answers, strict=False):
        assert answer.startswith(f"setup: ConfigError: {start}"), answer
    assert "scheduler='eular'" in answers[4]
    assert "did you mean 'euler'?" in answers[4]
    assert "num_inference_steps=1001: a DDIMScheduler takes at most 1000" in answers[5]
    assert draw(warm_backend, device="cpu").results["device"] == "cpu"


def test_folders_that_are_no_model_are_refused(
    warm_backend: LocalBackend, own_model: Path, tmp_path: Path
) -> None:
    def with_class(folder: str, name: object) -> str:
        (tmp_path / folder).mkdir()
        index = json.dumps({"_class_name": name})
        (tmp_path / folder / "model_index.json").write_text(index)
        return str(tmp_path / folder)

    (tmp_path / "empty").mkdir()
    (own_model / "unet" / WEIGHTS).write_bytes(b"x" * 1000)
    expected = {
        str(tmp_path / "absent"): "nothing is there on this machine",
        str(tmp_path / "empty"): "has no model_index.json",
        with_class("newer", "FuturePipeline"): "upgrade diffusers",
        with_class("custom", ["pipeline", "Own"]): "brings its own code",
        with_class("other", "StableDiffusionImg2ImgPipeline"): "does not draw from a text alone",
        with_class("scheduler", "DDIMScheduler"): "upgrade diffusers",
        str(own_model): "if its files are damaged",
    }
    answers = refusals(warm_backend, *({"model_name": name} for name in expected))
    for answer, text in zip(answers, expected.values(), strict=True):
        assert answer.startswith("setup: ConfigError:"), answer
        assert text in answer
    revision = refusals(warm_backend, {"model_name": str(own_model), "revision": "main"})
    assert "revision='main' has no meaning" in revision[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "at least 1"),
        ({"prompt": ["a", "b", "a"]}, "raise num_images"),
        ({"num_images": 0}, "greater than 0"),
        ({"batch_size": "large"}, "auto"),
        ({"batch_size": 0}, "greater than 0"),
        ({"height": 33}, "multiple of 8"),
        ({"guidance_scale": -1}, "greater than or equal to 0"),
        ({"negative_prompt": "blue", "guidance_scale": 1}, "no effect"),
        ({"revision": "main"}, "only one"),
        ({"variant": "fp16"}, "only one"),
        ({"quantization": "int4", "dtype": "float16"}, "bfloat16"),
        ({"num_image": 3}, "num_images"),
        ({"num_images": 10**12}, "at most 1,000,000"),
        ({"model_name": "Tiny_Digits"}, "did you mean 'tiny-digits'"),
        ({"lora": ""}, "lora: '' is no path"),
        ({"prompt": "x" * 30_000, "image_format": "jpeg"}, "use png or webp"),
        ({"prompt": [{"prompt": "a", "seeed": 1}]}, "valid:\n  prompt.0.seeed: unknown field"),
        ({"prompt": {"prompt": "a", "height": 33}}, "prompt.height: given 33: .*multiple of 8"),
        ({"dtype": "fp16"}, "float16"),
    ],
    ids=str,
)
def test_bad_config_is_refused_before_anything_starts(config: dict[str, Any], message: str) -> None:
    given = {"prompt": PROMPT, **config} if config else {}
    with pytest.raises(ConfigError, match=message):
        run_experiment(TextToImageExperiment, given)


@pytest.mark.slow
def test_compiled_network_draws_the_same_at_every_batch_size(warm_backend: LocalBackend) -> None:
    # not 5: a batch of one picture is compiled once more
    model = {"model_name": make_model(warm_backend), "num_images": 4}
    plain = draw(warm_backend, LooksInside, **model)
    compiled = draw(warm_backend, LooksInside, compile=True, **model)
    again = draw(warm_backend, LooksInside, compile=True, batch_size=2, **model)
    assert [run.results["compiled"] for run in (plain, compiled, again)] == [False, True, True]
    assert difference(pixels(plain), pixels(compiled)) <= 1
    assert difference(pixels(compiled), pixels(again)) <= 1
    assert again.results["load_seconds"] == 0


@pytest.mark.slow
def test_compile_without_a_compiler_is_refused(
    warm_backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(warm_backend)
    monkeypatch.setenv("CXX", str(tmp_path / "no-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    with LocalBackend() as backend:
        (answer,) = refusals(backend, {"model_name": model, "compile": True})
    assert answer.startswith("setup: ConfigError: compile=true"), answer
    assert "apt-get install g++" in answer


RUN_FIELDS: dict[str, Any] = {
    "prompt": "a blue one",
    "negative_prompt": "red",
    "num_images": 2,
    "num_inference_steps": 1,
    "guidance_scale": 2.0,
    "height": 40,
    "width": 40,
    "scheduler": "euler",
    "seed": 3,
    "batch_size": 1,
    "attention_slicing": True,
    "vae_tiling": True,
    "long_prompt": True,
    "image_format": "jpeg",
    "file_name": "{seed}",
    "image_quality": 50,
}


def test_changing_a_field_of_a_run_reloads_nothing(warm_backend: LocalBackend) -> None:
    draw(warm_backend).raise_for_error()
    for field, value in RUN_FIELDS.items():
        more = {"image_format": "webp"} if field == "image_quality" else {}
        result = draw(warm_backend, **{field: value, **more}).raise_for_error()
        assert result.results["load_seconds"] == 0, field


def test_a_mistake_in_a_config_does_not_cost_the_warm_model(
    warm_backend: LocalBackend, tmp_path: Path
) -> None:
    draw(warm_backend).raise_for_error()
    name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    shapes = {
        f"{name}.lora_A.weight": np.zeros((2, 7), np.float32),
        f"{name}.lora_B.weight": np.zeros((7, 2), np.float32),
    }
    save_file(shapes, tmp_path / "large.safetensors")
    for found_in_worker in (
        {"scheduler": "eular"},
        {"scheduler": "eular", "channels_last": True},
        {"lora": "absent.safetensors"},
        {"loras": [{"path": "./absent"}]},
        {"lora": str(tmp_path / "large.safetensors")},
        {"textual_inversions": [{"path": "./absent", "token": "red"}]},
        {"model_name": "./absent"},
        {"device": "mps"},
    ):
        error = draw(warm_backend, **found_in_worker).error
        assert error is not None
        assert error.kind == "config", error
    for refused in ({"num_images": 0}, {"num_image": 3}):
        with pytest.raises(ConfigError):
            draw(warm_backend, **refused)
    assert draw(warm_backend).results["load_seconds"] == 0


def test_changing_a_setup_field_reloads(warm_backend: LocalBackend, own_model: Path) -> None:
    changes: dict[str, Any] = {
        "model_name": str(own_model),
        "dtype": "bfloat16",
        "device": "cpu",
        "quantization": "int8",
        "loras": [{"path": str(make_lora(warm_backend)), "weight": 0.5}],
        "channels_last": True,
    }
    for field, value in changes.items():
        draw(warm_backend).raise_for_error()
        result = draw(warm_backend, **{field: value}).raise_for_error()
        assert result.results["load_seconds"] > 0, field
    # refused here, or with tests of their own
    elsewhere = {
        *("allow_pickle", "attention_backend", "base_model", "compile", "cpu_offload"),
        *("first_block_cache", "fuse_loras", "revision", "textual_inversions", "variant"),
    }
    assert set(TextToImageExperiment.setup_fields) == set(changes) | elsewhere
    fields = set(TextToImageExperiment.Config.model_fields)
    replaced = {"lora", "prompts_file", "true_cfg_scale"}  # by others; refused by this model
    assert fields == set(TextToImageExperiment.setup_fields) | set(RUN_FIELDS) | replaced
