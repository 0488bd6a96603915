"""Loads a diffusers pipeline as a config asks for it: precision, device, changes to its network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.denoiser import (
    compile_denoiser,
    fuse_lora,
    quantize_denoiser,
)
from ml_experiments.tasks.text_to_image.model_files import ModelFiles, fetch_lora, fetch_pipeline
from ml_experiments.tasks.text_to_image.quiet import quiet_imports, quiet_progress_bars

with quiet_imports():
    # seconds, for what nearly all pipelines share; a template spends them once for all runs
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion  # noqa: F401

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Quantization = Literal["none", "int8", "int4"]


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline in memory, ready to draw.

    Attributes:
        scheduler: The one that comes with the model.
        quantized_layers: How many layers have their weights in 8 or 4 bits.
    """

    pipeline: Any
    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    scheduler: Any
    quantized_layers: int


def load_pipeline(
    model_name: str,
    *,
    revision: str | None,
    variant: str | None,
    device: str,
    dtype: Dtype,
    quantization: Quantization,
    cpu_offload: bool,
    compile: bool,  # noqa: A002 - the name of the config field
    lora: str | None,
) -> LoadedPipeline:
    """Load a pipeline, downloading what isn't in the cache.

    Raises:
        ConfigError: If the model isn't there, or can't be loaded like this on this machine.
        AuthError: If the model is gated.
        CacheError: If a download failed.
    """
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    _check_device_can(chosen_device, chosen_dtype, quantization, cpu_offload)
    files = fetch_pipeline(model_name, revision, variant)
    lora_file = None if lora is None else fetch_lora(lora)
    pipeline = _read_pipeline(files, chosen_dtype, variant)
    if lora_file is not None:
        fuse_lora(pipeline, lora_file)
    quantized_layers = 0
    if quantization != "none":
        quantized_layers = quantize_denoiser(pipeline, quantization, chosen_device)
    if cpu_offload:
        pipeline.enable_model_cpu_offload(device=chosen_device)
    else:
        pipeline.to(chosen_device)
    pipeline.set_progress_bar_config(disable=True)
    if compile:
        compile_denoiser(pipeline)
    return LoadedPipeline(
        pipeline, files, chosen_device, chosen_dtype, pipeline.scheduler, quantized_layers
    )


def choose_device(wanted: str) -> torch.device:
    """Return the device of that name.

    Raises:
        ConfigError: If this machine doesn't have it.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if available[wanted]:
        return torch.device(wanted)
    has = ", ".join(name for name, is_here in available.items() if is_here)
    raise ConfigError(
        f"device={wanted}: torch {torch.__version__} finds none on this machine, only {has}; "
        "use device=auto"
    )


def choose_dtype(wanted: Dtype, device: torch.device) -> torch.dtype:
    """Return the number format to compute in; `auto` takes the best that is fast on the device."""
    if wanted != "auto":
        dtype: torch.dtype = getattr(torch, wanted)
        return dtype
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def _check_device_can(
    device: torch.device, dtype: torch.dtype, quantization: Quantization, cpu_offload: bool
) -> None:
    if quantization == "int4" and device.type != "cuda":
        raise ConfigError(
            f"quantization=int4 needs a CUDA GPU, and this run uses {device.type}; "
            "use quantization=int8, which works everywhere, or run on a GPU"
        )
    if quantization == "int4" and dtype is not torch.bfloat16:
        raise ConfigError(
            "quantization=int4 computes in bfloat16, which this GPU is not made for; "
            "use quantization=int8, or a newer GPU type (l4, a10g, a100, ...)"
        )
    if cpu_offload and device.type == "cpu":
        raise ConfigError(
            "cpu_offload=true moves parts of the model between a GPU and the CPU, and this run "
            "uses the CPU only; set cpu_offload=false, or run on a GPU"
        )


def _read_pipeline(files: ModelFiles, dtype: torch.dtype, variant: str | None) -> Any:
    try:
        with quiet_progress_bars():
            return files.pipeline_class.from_pretrained(files.folder, dtype=dtype, variant=variant)
    except (OSError, ValueError, SafetensorError) as e:
        of_variant = f" in variant {variant!r}" if variant else ""
        raise ConfigError(
            f"the model in {files.folder} can't be loaded{of_variant}: {e}; "
            "if its files are damaged, delete them and download or save the model again"
        ) from e
