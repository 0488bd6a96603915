"""LoRAs and textual inversions: applied as diffusers does, or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("peft")
import torch
from safetensors.torch import save_file

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.config import TextToImageConfig
from ml_experiments.tasks.text_to_image.model.loading import find_model, load_pipeline
from tests.support import tiny_pipelines

pytestmark = pytest.mark.slow

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model of each of two architectures."""
    made = {}
    for name in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        made[name] = tmp_path_factory.mktemp(name)
        tiny_pipelines.build(name).save_pretrained(made[name])
    return made


@pytest.fixture(scope="module")
def sd(folders: Mapping[str, Path]) -> Path:
    return folders["StableDiffusionPipeline"]


@pytest.fixture(scope="module")
def lora(sd: Path) -> Weights:
    return random_lora(sd, seed=0)


def random_lora(model: Path, seed: int) -> Weights:
    """Return a LoRA for the network and the text encoder, as peft names its weights."""
    from diffusers import DiffusionPipeline
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipeline = DiffusionPipeline.from_pretrained(model)
    torch.manual_seed(seed)
    targets = {
        "unet": ["to_q", "to_k", "to_v", "to_out.0"],
        "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    }
    weights = {}
    for part, modules in targets.items():
        module = getattr(pipeline, part)
        module.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=modules))
        for key, weight in get_peft_model_state_dict(module).items():
            weights[f"{part}.{key}"] = weight.contiguous()
    return weights


def as_on_civitai(weights: Weights) -> Weights:
    """Name the weights of a LoRA as the program kohya does."""
    renamed = {}
    for key, weight in weights.items():
        part, _, rest = key.partition(".")
        layer, matrix, _ = rest.rsplit(".", 2)
        prefix = "lora_unet" if part == "unet" else "lora_te_text_model"
        name = f"{prefix}_{layer.replace('.', '_')}"
        renamed[f"{name}.lora_{'down' if matrix == 'lora_A' else 'up'}.weight"] = weight
        renamed[f"{name}.alpha"] = torch.tensor(2.0)
    return renamed


def find(model: Path, prompt: str = "a red seven", **config: Any) -> Any:
    """Find a model and what is added to it; nothing is loaded yet."""
    given = TextToImageConfig(prompt=prompt, model_name=str(model), **config)
    return given, find_model(given, "cpu")


def load(model: Path, prompt: str = "a red seven", **config: Any) -> Any:
    return load_pipeline(*find(model, prompt, **config)).pipeline


def drawn(pipeline: Any, prompt: str = "a red seven") -> Any:
    return pipeline(
        prompt,
        num_inference_steps=2,
        height=64,
        width=64,
        output_type="np",
        generator=torch.Generator().manual_seed(1),
    ).images[0]


def difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max())


def test_several_loras_are_applied_with_their_weights(
    sd: Path, lora: Weights, tmp_path: Path
) -> None:
    weights = {"ink": 0.5, "oil": -0.8}
    for seed, name in enumerate(weights):
        save_file(random_lora(sd, seed), tmp_path / f"{name}.safetensors")
    loras = [{"path": str(tmp_path / f"{n}.safetensors"), "weight": w} for n, w in weights.items()]
    plainly = load(sd)
    for name in weights:
        plainly.load_lora_weights(tmp_path, weight_name=f"{name}.safetensors", adapter_name=name)
    plainly.set_adapters(list(weights), list(weights.values()))
    expected = drawn(plainly)
    for fuse in (True, False):
        pipeline = load(sd, loras=loras, fuse_loras=fuse)
        assert any("lora" in name for name, _ in pipeline.unet.named_modules()) != fuse
        assert difference(drawn(pipeline), expected) < 1e-4
    for alone in loras:
        assert difference(drawn(load(sd, loras=[alone])), expected) > 0.02


def test_a_lora_of_civitai_draws_what_the_same_one_of_peft_draws(
    sd: Path, lora: Weights, tmp_path: Path
) -> None:
    save_file(lora, tmp_path / "peft.safetensors")
    save_file(as_on_civitai(lora), tmp_path / "kohya.safetensors")
    by_peft, by_kohya = (
        drawn(load(sd, lora=str(tmp_path / f"{name}.safetensors"))) for name in ("peft", "kohya")
    )
    assert difference(by_peft, by_kohya) < 1e-4
    assert difference(by_peft, drawn(load(sd))) > 0.02


def test_a_folder_that_peft_has_saved_is_a_lora(sd: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig, get_peft_model

    unet = UNet2DConditionModel.from_pretrained(sd / "unet")
    targets = ["to_q", "to_k", "to_out.0"]
    config = LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, target_modules=targets)
    torch.manual_seed(0)
    adapted = get_peft_model(unet, config)
    adapted.save_pretrained(tmp_path / "saved")
    by_file = load(sd, lora=str(tmp_path / "saved"))
    plain = load(sd)
    assert difference(drawn(by_file), drawn(plain)) > 0.02
    plain.unet = adapted.merge_and_unload()
    assert difference(drawn(by_file), drawn(plain)) < 1e-4


def test_a_lora_of_another_architecture_is_refused_in_a_few_words(
    folders: Mapping[str, Path], sd: Path, lora: Weights, tmp_path: Path
) -> None:
    elsewhere = {k.replace("down_blocks.1", "down_blocks.7"): w for k, w in lora.items()}
    transformer = {k.replace("unet.", "transformer."): w for k, w in lora.items()}
    changed = {
        "others": (elsewhere, "8 of its 62 layers have no place in this StableDiffusionPipeline"),
        "encoder": (transformer, "32 of its 62 layers have no place"),
        "flux": ({"transformer.a.lora_A.weight": torch.zeros(2, 2)}, "none of its layers belongs"),
        "embedding": ({"emb_params": torch.zeros(2, 32)}, "Invalid LoRA checkpoint"),
    }
    for name, (weights, message) in changed.items():
        save_file(weights, tmp_path / f"{name}.safetensors")
        with pytest.raises(ConfigError, match=message):
            find(sd, lora=str(tmp_path / f"{name}.safetensors"))
    save_file(lora, tmp_path / "sd.safetensors")
    with pytest.raises(ConfigError, match=r"size mismatch.*was trained on this model") as caught:
        find(folders["StableDiffusionXLPipeline"], lora=str(tmp_path / "sd.safetensors"))
    assert len(str(caught.value)) < 700


def embeddings(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Write textual inversions of every kind, and some that don't fit."""
    torch.manual_seed(0)
    files: dict[str, Weights] = {
        "diffusers": {"<my-cat>": torch.randn(32)},
        "several-vectors": {"<my-cat>": torch.randn(3, 32)},
        "bad-hands": {"emb_params": torch.randn(2, 32)},
        "sdxl": {"clip_l": torch.randn(2, 32), "clip_g": torch.randn(2, 48)},
        "wide": {"<my-cat>": torch.randn(48)},
        "lora": {"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1)},
    }
    for name, weights in files.items():
        save_file(weights, folder / f"{name}.safetensors")
    return {name: {"path": str(folder / f"{name}.safetensors")} for name in files}


@pytest.mark.parametrize(
    ("name", "token", "word"),
    [
        ("diffusers", None, "<my-cat>"),
        ("diffusers", "<kitty>", "<kitty>"),
        ("several-vectors", None, "<my-cat>"),
        ("bad-hands", None, "bad-hands"),
        ("sdxl", "<my-cat>", "<my-cat>"),
    ],
)
def test_a_textual_inversion_changes_the_prompts_that_have_its_word(
    folders: Mapping[str, Path], tmp_path: Path, name: str, token: str | None, word: str
) -> None:
    is_xl = name == "sdxl"
    model = folders["StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"]
    inversion = {**embeddings(tmp_path)[name], "token": token}
    pipeline = load(model, f"a {word}", textual_inversions=[inversion])
    plain = load(model)
    assert difference(drawn(pipeline, f"a {word}"), drawn(plain, f"a {word}")) > 0.02
    assert difference(drawn(pipeline, "a dog"), drawn(plain, "a dog")) == 0


def test_a_textual_inversion_without_effect_or_place_is_refused(
    folders: Mapping[str, Path], sd: Path, tmp_path: Path
) -> None:
    files = embeddings(tmp_path)
    (tmp_path / "damaged.safetensors").write_bytes(b"no tensors")
    damaged = {"path": str(tmp_path / "damaged.safetensors")}
    xl = folders["StableDiffusionXLPipeline"]
    for model, inversions, message in (
        (sd, [files["bad-hands"]], "'bad-hands' stands in no prompt"),
        (sd, [files["wide"]], "its vectors have 48 numbers, those of the model 32"),
        (sd, [{**files["sdxl"], "token": "<my-cat>"}], "made for the two text encoders of SDXL"),
        (xl, [files["diffusers"]], "not made for the two text encoders of SDXL"),
        (sd, [files["lora"]], "holds 3 tensors"),
        (sd, [damaged], "can't be read"),
        (sd, [files["diffusers"]] * 2, "is a word of the tokenizer already"),
    ):
        with pytest.raises(ConfigError, match=message):
            find(model, "a <my-cat>", textual_inversions=inversions)
    negative = {"prompt": "a dog", "negative_prompt": "<my-cat>"}
    load(sd, [negative], textual_inversions=[files["diffusers"]])  # type: ignore[arg-type]
