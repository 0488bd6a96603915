"""A model that is one file, with what it lacks from a base model in a folder."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import torch
from safetensors.torch import save_file

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.config import TextToImageConfig
from ml_experiments.tasks.text_to_image.model.loading import find_model, load_pipeline
from tests.support import original_checkpoints, tiny_pipelines

pytestmark = pytest.mark.slow

# as the original checkpoint names what diffusers renames
ORIGINAL_NAMES = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}


Weights = dict[str, torch.Tensor]


def load(file: Path, base: Path, **config: Any) -> Any:
    given = TextToImageConfig(prompt="a", model_name=str(file), base_model=str(base), **config)
    return load_pipeline(given, find_model(given, "cpu")).pipeline


def save(weights: Weights, file: Path) -> Path:
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file)
    return file


def configs_only(pipeline: Any, folder: Path) -> Path:
    pipeline.save_pretrained(folder)
    for file in folder.rglob("*.safetensors"):
        file.unlink()
    return folder


def has_the_weights_of(loaded: Any, expected: Any) -> bool:
    found, wanted = loaded.state_dict(), expected.state_dict()
    return found.keys() == wanted.keys() and all(
        torch.equal(found[k], w) for k, w in wanted.items()
    )


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("StableDiffusionPipeline", original_checkpoints.stable_diffusion),
        ("StableDiffusionPipeline", original_checkpoints.stable_diffusion_2),
        ("StableDiffusionXLPipeline", original_checkpoints.sdxl),
    ],
    ids=["sd1", "sd2", "sdxl"],
)
def test_a_whole_model_in_one_file_needs_only_configs_besides(
    name: str, original: Callable[[Any], Weights], tmp_path: Path
) -> None:
    pipeline = tiny_pipelines.build(name)
    base = configs_only(pipeline, tmp_path / "base")
    loaded = load(save(original(pipeline), tmp_path / "model.safetensors"), base)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if hasattr(pipeline, part):
            assert has_the_weights_of(getattr(loaded, part), getattr(pipeline, part)), part


@pytest.fixture
def small_flux(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny Flux, and diffusers' converter of its checkpoints, which knows the real width only."""
    from diffusers.loaders import single_file_model, single_file_utils

    pipeline = tiny_pipelines.build("FluxPipeline")
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    source = inspect.getsource(convert).replace("inner_dim = 3072", "inner_dim = 32")
    changed = dict(vars(single_file_utils))
    exec(source, changed)
    known = single_file_model.SINGLE_FILE_LOADABLE_CLASSES["FluxTransformer2DModel"]
    monkeypatch.setitem(known, "checkpoint_mapping_fn", changed[convert.__name__])
    return pipeline


def difference(pipeline: Any, loaded: Any) -> float:
    """Return how far the pictures of two pipelines are apart, of 1."""
    options = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
    plain, drawn = (
        p("a red seven", generator=torch.Generator().manual_seed(1), **options).images
        for p in (pipeline, loaded)
    )
    return float(abs(plain - drawn).max())


def write_gguf(weights: Weights, file: Path) -> int:
    """Write a .gguf file, matrices in 8 bits; return how many those are."""
    gguf = pytest.importorskip("gguf")
    writer, quantized = gguf.GGUFWriter(file, "any"), 0
    for name, weight in weights.items():
        kind = gguf.GGMLQuantizationType.F32
        if weight.ndim == 2 and weight.shape[1] % 32 == 0 and "pad_token" not in name:
            kind, quantized = gguf.GGMLQuantizationType.Q8_0, quantized + 1
        data = gguf.quants.quantize(weight.contiguous().numpy(), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return quantized


def test_an_sd3_in_one_file_takes_its_text_encoders_from_the_base_model(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.build("StableDiffusion3Pipeline")
    pipeline.save_pretrained(tmp_path / "base")
    weights = original_checkpoints.sd3(pipeline)
    for part in ("transformer", "vae"):  # these come from the file
        for file in (tmp_path / "base" / part).glob("*.safetensors"):
            file.unlink()
    loaded = load(save(weights, tmp_path / "sd3.safetensors"), tmp_path / "base")
    for part in ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"):
        assert has_the_weights_of(getattr(loaded, part), getattr(pipeline, part)), part


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."], ids=["plain", "prefixed"])
def test_a_flux_in_one_file_is_its_transformer(
    small_flux: Any, prefix: str, tmp_path: Path
) -> None:
    small_flux.save_pretrained(tmp_path / "base")
    weights = {f"{prefix}{k}": w for k, w in original_checkpoints.flux(small_flux).items()}
    loaded = load(save(weights, tmp_path / "flux.safetensors"), tmp_path / "base")
    assert has_the_weights_of(loaded.transformer, small_flux.transformer)
    assert difference(small_flux, loaded) < 1e-3


def test_a_flux_in_a_gguf_file_keeps_its_quantized_weights(small_flux: Any, tmp_path: Path) -> None:
    small_flux.save_pretrained(tmp_path / "base")
    quantized = write_gguf(original_checkpoints.flux(small_flux), tmp_path / "flux.gguf")
    loaded = load(tmp_path / "flux.gguf", tmp_path / "base")
    modules = [type(module).__name__ for module in loaded.transformer.modules()]
    assert modules.count("GGUFLinear") >= quantized > 10
    assert 0 < difference(small_flux, loaded) < 0.1


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Weights, Path, Path]:
    """A pipeline, its weights as one file has them, and two base models: whole and configs only."""
    pipeline = tiny_pipelines.build("StableDiffusionPipeline")
    whole = tmp_path_factory.mktemp("base")
    pipeline.save_pretrained(whole)
    configs = configs_only(pipeline, tmp_path_factory.mktemp("configs"))
    return pipeline, original_checkpoints.stable_diffusion(pipeline), whole, configs


def test_a_pickle_is_loaded_where_it_is_allowed(
    sd: tuple[Any, Weights, Path, Path], tmp_path: Path
) -> None:
    pipeline, weights, _, configs = sd
    torch.save({"state_dict": weights}, tmp_path / "model.ckpt")
    with pytest.raises(ConfigError, match="allow_pickle=true"):
        load(tmp_path / "model.ckpt", configs)
    loaded = load(tmp_path / "model.ckpt", configs, allow_pickle=True)
    assert has_the_weights_of(loaded.unet, pipeline.unet)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_what_a_file_lacks_comes_from_the_base_model(
    sd: tuple[Any, Weights, Path, Path], part: str, tmp_path: Path
) -> None:
    pipeline, weights, whole, configs = sd
    prefix = {"vae": "first_stage_model.", "text_encoder": "cond_stage_model."}[part]
    lacking = {name: w for name, w in weights.items() if not name.startswith(prefix)}
    file = save(lacking, tmp_path / "lacking.safetensors")
    assert has_the_weights_of(getattr(load(file, whole), part), getattr(pipeline, part))
    with pytest.raises(ConfigError, match=f"has no {part}, and neither has base_model"):
        load(file, configs)


def test_files_that_are_damaged_or_of_another_model_are_refused(
    sd: tuple[Any, Weights, Path, Path], tmp_path: Path
) -> None:
    _, weights, whole, _ = sd
    file = save(weights, tmp_path / "model.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(file.read_bytes()[:-1000])
    (tmp_path / "cut.gguf").write_bytes(b"GGUF and no more")
    gap = dict(weights)
    del gap["model.diffusion_model.middle_block.0.in_layers.2.weight"]
    save(gap, tmp_path / "gap.safetensors")
    save({"unet.a.lora_A.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    for name, message in {
        "cut.safetensors": "if it is damaged, download it again",
        "cut.gguf": "if it is damaged, download it again",
        "gap.safetensors": "is not whole",
        "lora.safetensors": "set base_model to the model that it is a version of",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / name, whole)
    xl = configs_only(tiny_pipelines.build("StableDiffusionXLPipeline"), tmp_path / "xl")
    for base in (xl, "tiny-digits"):
        with pytest.raises(ConfigError, match="set base_model to the model that it is a version"):
            load(file, base)  # type: ignore[arg-type]


def test_a_file_that_a_modal_container_does_not_have_belongs_on_a_volume(
    sd: tuple[Any, Weights, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODAL_TASK_ID", "ta-1")
    with pytest.raises(ConfigError, match="modal volume put hf-model-cache"):
        load(Path("/home/ada/model.safetensors"), sd[2])


def original_z_image(transformer: Any) -> Weights:
    weights = {}
    for name, weight in transformer.state_dict().items():
        for ours, original in ORIGINAL_NAMES.items():
            name = name.replace(ours, original)
        weights[name] = weight
    return weights


def test_a_file_of_a_transformer_is_loaded_with_the_rest_of_a_base_model(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.build("ZImagePipeline")
    pipeline.save_pretrained(tmp_path / "base")
    weights = original_z_image(pipeline.transformer)
    named = {f"model.diffusion_model.{name}": weight for name, weight in weights.items()}
    loaded = load(save(named, tmp_path / "z.safetensors"), tmp_path / "base")
    assert has_the_weights_of(loaded.transformer, pipeline.transformer)


def test_a_gguf_file_keeps_its_quantized_weights(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.build("ZImagePipeline")
    pipeline.save_pretrained(tmp_path / "base")
    quantized = write_gguf(original_z_image(pipeline.transformer), tmp_path / "z.gguf")
    loaded = load(tmp_path / "z.gguf", tmp_path / "base")
    modules = [type(module).__name__ for module in loaded.transformer.modules()]
    assert modules.count("GGUFLinear") >= quantized > 20
    assert 0 < difference(pipeline, loaded) < 0.1
    save({"transformer.a.lora_A.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    for refused, message in (
        ({"quantization": "int8"}, "are quantized already"),
        ({"lora": str(tmp_path / "lora.safetensors")}, "set fuse_loras=false"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(tmp_path / "z.gguf", tmp_path / "base", **refused)
