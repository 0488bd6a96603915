"""Pictures on a CUDA GPU: precision, memory, speed. Random weights of real sizes, no download.

make gpu-wheels                  # on a machine with a network: fills wheels/
make test-gpu                    # on the GPU machine, which needs only Python and torch

Without a GPU, `CHECKS_ON=cpu make test-gpu` tries the checks with tiny models: all of them but
those that need the memory of a GPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import torch

from ml_experiments import LocalBackend, current_run, run_experiment
from ml_experiments.runs.result import RunResult
from tests.support import tiny_pipelines
from tests.support.pictures import draw, pixels

IS_CUDA = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        not IS_CUDA and os.environ.get("CHECKS_ON") != "cpu", reason="needs a CUDA GPU"
    ),
]
needs_cuda = pytest.mark.skipif(not IS_CUDA, reason="needs the memory of a CUDA GPU")
MB, GB = 2**20, 2**30
SIDE, STEPS = (512, 20) if IS_CUDA else (64, 2)


@pytest.fixture(scope="module")
def gpu_backend() -> Iterator[LocalBackend]:
    with LocalBackend() as backend:
        yield backend


def drawn(backend: LocalBackend, **config: Any) -> RunResult:
    """Draw 512 by 512 pixels in 20 steps, small ones on a CPU."""
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS}
    return draw(backend, **{**size, **config})


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of Stable Diffusion 1.5's size with random weights."""
    return _save(tmp_path_factory.mktemp("sd15"), is_xl=False)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of SDXL's size with random weights."""
    return _save(tmp_path_factory.mktemp("sdxl"), is_xl=True)


def _save(folder: Path, is_xl: bool) -> str:
    if not IS_CUDA:
        name = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
        tiny_pipelines.build(name).save_pretrained(folder)
        return str(folder)
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    tokenizer = tiny_pipelines.clip_tokenizer()

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
@pytest.mark.parametrize("model", ["tiny-digits", "sd15"])
def test_half_precision_draws_nearly_what_float32_does(
    gpu_backend: LocalBackend, model: str, dtype: str, bound: float, request: Any
) -> None:
    if model == "tiny-digits":
        same: dict[str, Any] = {"num_images": 8, "height": 32, "width": 32}
    else:
        same = {"num_images": 2, "model_name": request.getfixturevalue(model)}
    exact = pixels(drawn(gpu_backend, dtype="float32", **same))
    half = pixels(drawn(gpu_backend, dtype=dtype, **same))
    assert 0 < np.abs(exact - half).mean() < bound


def test_auto_chooses_the_device_and_its_format(gpu_backend: LocalBackend) -> None:
    results = draw(gpu_backend).raise_for_error().results
    assert results["device"] == ("cuda" if IS_CUDA else "cpu")
    assert results["dtype"] in (("bfloat16", "float16") if IS_CUDA else ("float32",))


@pytest.mark.parametrize("quantization", ["int8", "fp8", pytest.param("int4", marks=needs_cuda)])
def test_quantized_weights_draw_nearly_the_same_and_need_less_memory(
    gpu_backend: LocalBackend, sd15: str, quantization: str
) -> None:
    same = {"model_name": sd15, "dtype": "bfloat16", "num_images": 2}
    if IS_CUDA and quantization == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    plain, quantized = (drawn(gpu_backend, **same, quantization=q) for q in ("none", quantization))
    assert quantized.results["quantized_layers"] > (100 if IS_CUDA else 10)
    assert 0 < np.abs(pixels(plain) - pixels(quantized)).mean() < 16
    if IS_CUDA:
        _say_peaks(plain, quantized, quantization)
        assert _peak(quantized) < _peak(plain)


def test_compiled_and_laid_out_anew_it_draws_the_same_and_says_how_fast(
    gpu_backend: LocalBackend, sd15: str
) -> None:
    same = {"model_name": sd15, "dtype": "float32" if not IS_CUDA else "float16", "num_images": 8}
    plain = _warm(lambda: drawn(gpu_backend, **same))
    for option in ({"compile": True}, {"channels_last": True}):
        changed = _warm(lambda o=option: drawn(gpu_backend, **same, **o))  # type: ignore[misc]
        assert np.abs(pixels(plain) - pixels(changed)).mean() < 2, option
        ratio = changed.results["images_per_second"] / plain.results["images_per_second"]
        print(f"{option}: {ratio:.2f} times as fast")


def test_options_of_transformers_draw_the_same(gpu_backend: LocalBackend, tmp_path: Path) -> None:
    tiny_pipelines.build("FluxPipeline").save_pretrained(tmp_path)
    same = {"model_name": str(tmp_path), "dtype": "float32", "height": 64, "width": 64}
    plain = pixels(draw(gpu_backend, **same))
    for option in ({"attention_backend": "native"}, {"first_block_cache": 0.1}):
        changed = pixels(draw(gpu_backend, **same, **option))
        assert np.abs(plain - changed).mean() < 2, option


@pytest.mark.parametrize(
    "option",
    [
        pytest.param({"cpu_offload": True}, marks=needs_cuda),
        {"attention_slicing": True},
        {"vae_tiling": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_options_for_memory_draw_the_same_with_less(
    gpu_backend: LocalBackend, sd15: str, option: dict[str, Any]
) -> None:
    side = 1024 if IS_CUDA else SIDE  # tiles are smaller than that
    same = {"model_name": sd15, "dtype": "float32", "height": side, "width": side}
    plain, changed = drawn(gpu_backend, **same), drawn(gpu_backend, **same, **option)
    # what a decoder with random weights draws depends much on the part that it sees
    bound = 40 if "vae_tiling" in option else 2
    assert np.abs(pixels(plain) - pixels(changed)).mean() < bound
    if IS_CUDA:
        _say_peaks(plain, changed, next(iter(option)))
        # slices of attention are no larger than what the fused kernels of torch need
        assert _peak(changed) < _peak(plain) * (1.1 if "attention_slicing" in option else 1)


@needs_cuda
def test_peak_memory_is_what_the_model_and_the_pictures_need(
    gpu_backend: LocalBackend, sd15: str
) -> None:
    files = Path(sd15).rglob("*.safetensors")
    weights = sum(file.stat().st_size for file in files)  # in float16
    one, four = (
        _peak(drawn(gpu_backend, model_name=sd15, dtype="float16", num_images=n, batch_size=n))
        for n in (1, 4)
    )
    print(f"weights {weights / MB:.0f} MB; peak of 1 picture {one / MB:.0f}, of 4 {four / MB:.0f}")
    assert weights < one < weights + 8 * GB
    assert one < four < torch.cuda.get_device_properties(0).total_memory


@needs_cuda
def test_out_of_memory_halves_the_batch(gpu_backend: LocalBackend, sd15: str) -> None:
    large = {"height": 1024, "width": 1024, "num_inference_steps": 1, "num_images": 8}
    for left_gb in (14, 11, 9, 7, 6, 5, 4):  # until `auto` starts with more than fits
        free, _ = torch.cuda.mem_get_info()
        hog = torch.empty(max(0, free - left_gb * GB), dtype=torch.uint8, device="cuda")
        try:
            with LocalBackend() as backend:
                result = draw(backend, model_name=sd15, dtype="float16", **large)
        finally:
            del hog
            torch.cuda.empty_cache()
        result.raise_for_error()
        if result.results["batch_sizes_out_of_memory"]:
            break
    else:
        pytest.fail("everything fit into 4 GB")
    print(f"{left_gb} GB: too many at once were {result.results['batch_sizes_out_of_memory']}")
    assert result.results["batch_size"] < result.results["batch_sizes_out_of_memory"][0]
    assert len(result.results["images"]) == 8


@needs_cuda
def test_a_fixed_batch_that_does_not_fit_is_cuda_oom(gpu_backend: LocalBackend, sd15: str) -> None:
    count = max(4, torch.cuda.get_device_properties(0).total_memory // (64 * MB))
    many = {"num_images": int(count), "batch_size": int(count), "num_inference_steps": 1}
    result = draw(gpu_backend, model_name=sd15, height=1024, width=1024, **many)
    assert result.error is not None
    assert result.error.kind == "cuda_oom"
    draw(gpu_backend).raise_for_error()


@needs_cuda
def test_memory_is_given_back_between_runs_and_after_them(sd15: str) -> None:
    torch.cuda.empty_cache()
    before, _ = torch.cuda.mem_get_info()
    with LocalBackend() as backend:
        drawn(backend, model_name=sd15, num_images=8).raise_for_error()
        with_large, _ = torch.cuda.mem_get_info()
        draw(backend).raise_for_error()  # another model, in the same worker
        _wait_for_free(with_large + 1500 * MB)
    _wait_for_free(before - 500 * MB)


def report_gpu(config: Any) -> dict[str, Any]:
    """Say which GPUs this worker sees."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "count": gpus,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "device": current_run().device,
    }


def test_each_worker_has_a_gpu_of_its_own() -> None:
    count = max(1, torch.cuda.device_count())
    with LocalBackend(max_workers=count) as backend:
        handles = [run_experiment(report_gpu, {}, backend=backend) for _ in range(count)]
        seen = [handle.raise_for_error().results for handle in handles]
    assert [each["count"] for each in seen] == [1 if IS_CUDA else 0] * count
    assert {each["device"] for each in seen} == {"cuda" if IS_CUDA else "cpu"}


@pytest.mark.parametrize("model", ["sd15", "sdxl"])
def test_throughput_is_that_of_a_plain_loop(
    gpu_backend: LocalBackend, model: str, request: pytest.FixtureRequest
) -> None:
    from diffusers import DiffusionPipeline

    folder = request.getfixturevalue(model)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS}
    dtype = "float16" if IS_CUDA else "float32"
    options = {"model_name": folder, "dtype": dtype, "batch_size": 4, "num_images": 16}
    ours = _warm(lambda: drawn(gpu_backend, **options)).results["images_per_second"]
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype))
    pipeline.to("cuda" if IS_CUDA else "cpu").set_progress_bar_config(disable=True)

    def plainly(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            pipeline(["a red seven"] * 4, **size)
        return 4 * count / (time.perf_counter() - started)

    plainly(1)
    plain = plainly(4)
    print(f"{model}: {ours:.2f} pictures a second; a plain loop: {plain:.2f}")
    if IS_CUDA:  # tiny pictures take longer to write than to draw
        assert ours > 0.8 * plain


def _warm(run: Callable[[], RunResult]) -> RunResult:
    """Return the result of a second run, which loads and compiles nothing."""
    run().raise_for_error()
    return run().raise_for_error()


def _peak(result: RunResult) -> int:
    return int(result.raise_for_error().environment["peak_gpu_memory_bytes"])


def _say_peaks(plain: RunResult, changed: RunResult, option: str) -> None:
    print(f"{option}: peak {_peak(changed) / MB:.0f} MB, without it {_peak(plain) / MB:.0f} MB")


def _wait_for_free(bytes_free: int) -> None:
    deadline = time.monotonic() + 20
    while torch.cuda.mem_get_info()[0] < bytes_free and time.monotonic() < deadline:
        time.sleep(0.1)
    assert torch.cuda.mem_get_info()[0] >= bytes_free
