"""Pictures on a CUDA GPU: precision, memory, speed. Random weights of real sizes, no download.

make gpu-wheels                  # on a machine with a network: fills wheels/
make test-gpu                    # on the GPU machine, which needs only Python and torch
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import torch

from ml_experiments import LocalBackend
from tests.support.pictures import draw, pixels
from tests.support.tiny_pipelines import clip_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
MB = 2**20


@pytest.fixture(scope="module")
def gpu_backend() -> Iterator[LocalBackend]:
    with LocalBackend() as backend:
        yield backend


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of Stable Diffusion 1.5's size with random weights."""
    return _save(tmp_path_factory.mktemp("sd15"), is_xl=False)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of SDXL's size with random weights."""
    return _save(tmp_path_factory.mktemp("sdxl"), is_xl=True)


def _save(folder: Path, is_xl: bool) -> str:
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = clip_tokenizer()

    def text_encoder(kind: Any, size: int, layers: int) -> Any:
        config = CLIPTextConfig(
            hidden_size=size,
            intermediate_size=4 * size,
            num_hidden_layers=layers,
            num_attention_heads=size // 64,
            projection_dim=size,
            eos_token_id=tokenizer.eos_token_id,
        )
        return kind(config).half()

    of_unet: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
    if is_xl:
        of_unet = {
            "sample_size": 128,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 1280 + 6 * 256,
        }
    parts: dict[str, Any] = {
        "unet": diffusers.UNet2DConditionModel(**{"sample_size": 64, **of_unet}).half(),
        "vae": diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ).half(),
        "text_encoder": text_encoder(CLIPTextModel, 768, 12),
        "tokenizer": tokenizer,
        "scheduler": diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
    }
    if is_xl:
        second = text_encoder(CLIPTextModelWithProjection, 1280, 32)
        more = {"text_encoder_2": second, "tokenizer_2": tokenizer}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, **more)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **none)
    pipeline.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(("dtype", "bound"), [("bfloat16", 4.0), ("float16", 1.0)])
def test_half_precision_draws_nearly_what_float32_does(
    gpu_backend: LocalBackend, dtype: str, bound: float
) -> None:
    exact = pixels(draw(gpu_backend, num_images=8, dtype="float32", num_inference_steps=20))
    half = pixels(draw(gpu_backend, num_images=8, dtype=dtype, num_inference_steps=20))
    assert np.abs(exact - half).mean() < bound


def test_auto_chooses_the_gpu_and_a_half_format(gpu_backend: LocalBackend) -> None:
    result = draw(gpu_backend)
    assert result.results["device"] == "cuda"
    assert result.results["dtype"] in ("bfloat16", "float16")


@pytest.mark.parametrize("quantization", ["int8", "fp8", "int4"])
def test_quantized_weights_draw_nearly_the_same(
    gpu_backend: LocalBackend, sd15: str, quantization: str
) -> None:
    same = {"model_name": sd15, "dtype": "bfloat16", "num_images": 2}
    if quantization == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    plain = draw(gpu_backend, **same)
    quantized = draw(gpu_backend, **same, quantization=quantization)
    assert quantized.results["quantized_layers"] > 100
    assert np.abs(pixels(plain) - pixels(quantized)).mean() < 16


@pytest.mark.parametrize(
    "option",
    [
        {"compile": True},
        {"cpu_offload": True},
        {"attention_slicing": True},
        {"vae_tiling": True},
        {"channels_last": True},
        {"attention_backend": "native"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_for_speed_and_memory_draw_the_same(
    gpu_backend: LocalBackend, sd15: str, option: dict[str, Any]
) -> None:
    same = {"model_name": sd15, "dtype": "float32", "num_images": 2}
    plain, changed = draw(gpu_backend, **same), draw(gpu_backend, **same, **option)
    bound = 8 if "vae_tiling" in option else 2
    assert np.abs(pixels(plain) - pixels(changed)).mean() < bound


def test_out_of_memory_halves_the_batch(gpu_backend: LocalBackend, sd15: str) -> None:
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(0, free - 10 * 1024 * MB), dtype=torch.uint8, device="cuda")
    try:
        large = {"height": 1024, "width": 1024, "num_inference_steps": 1, "num_images": 16}
        # more than fit into ten gigabytes, from where `auto` starts
        result = draw(gpu_backend, model_name=sd15, **large, guidance_scale=7.5)
    finally:
        del hog
        torch.cuda.empty_cache()
    result.raise_for_error()
    if not result.results["batch_sizes_out_of_memory"]:
        pytest.skip("everything fit into the memory that was left")
    assert result.results["batch_size"] < 16


def test_a_fixed_batch_that_does_not_fit_is_cuda_oom(gpu_backend: LocalBackend, sd15: str) -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    count = max(4, total // (64 * MB))
    result = draw(
        gpu_backend,
        model_name=sd15,
        height=1024,
        width=1024,
        num_images=int(count),
        batch_size=int(count),
        num_inference_steps=1,
    )
    assert result.error is not None
    assert result.error.kind == "cuda_oom"
    draw(gpu_backend).raise_for_error()


def test_memory_is_given_back_between_runs(gpu_backend: LocalBackend, sd15: str) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    with LocalBackend() as backend:
        result = draw(backend, model_name=sd15).raise_for_error()
        print("environment:", dict(result.environment))
    deadline = time.monotonic() + 20
    while torch.cuda.mem_get_info()[0] < before - 500 * MB and time.monotonic() < deadline:
        time.sleep(0.1)
    assert torch.cuda.mem_get_info()[0] > before - 500 * MB


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_throughput_is_that_of_a_plain_loop(
    gpu_backend: LocalBackend, model: str, request: pytest.FixtureRequest
) -> None:
    from diffusers import DiffusionPipeline

    folder = request.getfixturevalue(model)
    size = {"height": 512, "width": 512, "num_inference_steps": 20}
    options = {"model_name": folder, "dtype": "float16", "batch_size": 4, "num_images": 16, **size}
    draw(gpu_backend, **{**options, "num_images": 4}).raise_for_error()  # warms up
    ours = draw(gpu_backend, **options).raise_for_error().results["images_per_second"]
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float16).to("cuda")
    pipeline.set_progress_bar_config(disable=True)

    def plainly(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            pipeline(["a red seven"] * 4, **size)
        return 4 * count / (time.perf_counter() - started)

    plainly(1)
    plain = plainly(4)
    print(f"{model}: {ours:.2f} pictures a second; a plain loop: {plain:.2f}")
    assert ours > 0.8 * plain
