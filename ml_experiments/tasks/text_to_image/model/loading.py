"""Loads a diffusers pipeline as a config asks for it: precision, device, changes to its network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.long_prompts import check_long_prompts
from ml_experiments.tasks.text_to_image.model.adapters import (
    Embedding,
    add_loras,
    check_adapters,
    check_words,
    load_embeddings,
    load_loras,
    read_embedding,
    try_embeddings,
)
from ml_experiments.tasks.text_to_image.model.checkpoint_file import (
    check_single_file,
    load_checkpoint,
)
from ml_experiments.tasks.text_to_image.model.denoiser import (
    cache_first_block,
    check_speed_options,
    compile_denoiser,
    quantize_denoiser,
    set_attention_backend,
    use_channels_last,
)
from ml_experiments.tasks.text_to_image.model.empty_pipeline import empty_pipeline
from ml_experiments.tasks.text_to_image.model.model_files import (
    ModelFiles,
    check_parts,
    fetch_adapter,
    fetch_configs,
    fetch_part,
    fetch_weights,
)
from ml_experiments.tasks.text_to_image.model.quiet import quiet_logging, quiet_progress_bars
from ml_experiments.tasks.text_to_image.requests import DrawingSettings

with quiet_logging():
    # seconds, for what nearly all pipelines share; a template spends them once for all runs
    import diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion  # noqa: F401

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import TextToImageConfig

Dtype = Literal["auto", "float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class FoundModel:
    """What a config names, found and checked: nothing is loaded but embeddings.

    Attributes:
        loras: The files of the LoRAs.
        embeddings: The textual inversions.
    """

    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    loras: Sequence[Path]
    embeddings: Sequence[Embedding]


@dataclass(frozen=True)
class LoadedPipeline:
    """A pipeline in memory, ready to draw.

    Attributes:
        scheduler: The one that comes with the model.
        quantized_layers: How many layers have their weights in 8 or 4 bits.
        embeddings: That its text encoders learned.
    """

    pipeline: Any
    files: ModelFiles
    device: torch.device
    dtype: torch.dtype
    scheduler: Any
    quantized_layers: int
    embeddings: Sequence[Embedding] = ()

    @property
    def dtype_name(self) -> str:
        """Such as `float32`."""
        return str(self.dtype).removeprefix("torch.")


def find_model(config: TextToImageConfig, device_name: str) -> FoundModel:
    """Find what a config names and check that it fits the options, before weights are downloaded.

    Args:
        config: Of the run.
        device_name: Where to draw: cuda, mps or cpu.

    Raises:
        ConfigError: If something isn't there, or can't be used like this on this machine.
        AuthError: If something is gated.
        CacheError: If a download failed.
    """
    device = choose_device(device_name)
    dtype = choose_dtype(config.dtype, device)
    _check_device_can(config, device, dtype)
    files = fetch_configs(config)
    _check_setup(config, files)
    check_run(config, files)
    loras = [fetch_adapter(lora.path) for lora in config.loras]
    inversions = config.textual_inversions
    embeddings = [
        read_embedding(i, fetch_adapter(i.path, "textual_inversions")) for i in inversions
    ]
    check_words(embeddings, config)
    if loras or embeddings:
        pipeline = empty_pipeline(files.traits)
        try_embeddings(pipeline, inversions, embeddings)
        add_loras(pipeline, config.loras, loras)
    return FoundModel(files, device, dtype, loras, embeddings)


def load_pipeline(config: TextToImageConfig, found: FoundModel) -> LoadedPipeline:
    """Load a pipeline, downloading what isn't in the cache.

    Args:
        config: Of the run.
        found: What `find_model` returned for it.

    Raises:
        ConfigError: If it can't be loaded like this.
        CacheError: If a download failed.
    """
    files, device, dtype = found.files, found.device, found.dtype
    pipeline = _read_pipeline(files, config.revision, dtype)
    load_embeddings(pipeline, found.embeddings)
    if found.loras:
        load_loras(pipeline, config.loras, found.loras, config.fuse_loras)
    quantized_layers = 0
    if config.quantization != "none":
        quantized_layers = quantize_denoiser(pipeline, config.quantization, device)
    if config.channels_last:
        use_channels_last(pipeline)
    if config.attention_backend is not None:
        set_attention_backend(pipeline, config.attention_backend)
    if config.first_block_cache is not None:
        cache_first_block(pipeline, config.first_block_cache)
    if config.cpu_offload:
        pipeline.enable_model_cpu_offload(device=device)
    else:
        with quiet_logging():  # of float16 on a CPU, which works
            pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    for inner in ("prior_pipe", "decoder_pipe"):
        if hasattr(pipeline, inner):
            getattr(pipeline, inner).set_progress_bar_config(disable=True)
    if config.compile:
        compile_denoiser(pipeline)
    return LoadedPipeline(
        pipeline, files, device, dtype, pipeline.scheduler, quantized_layers, found.embeddings
    )


def check_run(config: TextToImageConfig, files: ModelFiles) -> None:
    """Check that every option has an effect, for each prompt.

    Raises:
        ConfigError: If one has none; it says what to do, and for which prompt if there are several.
    """
    # one prompt for each of the different settings
    prompts = {DrawingSettings.of(row, files.recommended): row.prompt for row in config.rows}
    for settings, prompt in prompts.items():
        try:
            if settings.scheduler is not None:
                files.traits.make_scheduler(settings.scheduler)
            files.traits.check(settings)
        except ConfigError as e:
            if len(config.rows) == 1:
                raise
            raise ConfigError(f"{e} (prompt {prompt!r})") from e
    check_speed_options(files.traits, config)
    if config.long_prompt:
        check_long_prompts(files.traits)


def _check_setup(config: TextToImageConfig, files: ModelFiles) -> None:
    check_adapters(files.traits, config.loras, config.textual_inversions)
    if files.checkpoint is not None:
        check_single_file(files.traits, files.checkpoint)
        is_quantized = files.checkpoint.suffix.lower() == ".gguf"
        if is_quantized and config.quantization != "none":
            raise ConfigError(
                f"quantization={config.quantization}: the weights in {files.checkpoint.name} are "
                "quantized already; leave quantization out"
            )
        if is_quantized and config.loras and config.fuse_loras:
            raise ConfigError(
                f"fuse_loras: the weights in {files.checkpoint.name} are quantized, so no LoRA can "
                "be added to them; set fuse_loras=false"
            )


def choose_device(wanted: str) -> torch.device:
    """Return the device of that name.

    Raises:
        ConfigError: If this machine doesn't have it.
    """
    available: Mapping[str, bool] = {
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


def _check_device_can(config: TextToImageConfig, device: torch.device, dtype: torch.dtype) -> None:
    if config.quantization == "int4" and device.type != "cuda":
        raise ConfigError(
            f"quantization=int4 needs a CUDA GPU, and this run uses {device.type}; "
            "use quantization=int8, which works everywhere, or run on a GPU"
        )
    if config.quantization == "int4" and dtype is not torch.bfloat16:
        raise ConfigError(
            "quantization=int4 computes in bfloat16, which this GPU is not made for; "
            "use quantization=int8, or a newer GPU type (l4, a10g, a100, ...)"
        )
    if config.cpu_offload and device.type == "cpu":
        raise ConfigError(
            "cpu_offload=true moves parts of the model between a GPU and the CPU, and this run "
            "uses the CPU only; set cpu_offload=false, or run on a GPU"
        )


def _read_pipeline(files: ModelFiles, revision: str | None, dtype: torch.dtype) -> Any:
    folder = fetch_weights(files, revision)
    if files.checkpoint is not None:
        return load_checkpoint(
            files.checkpoint, files.traits, folder, dtype, partial(fetch_part, files)
        )
    if files.hub_name is not None:
        check_parts(folder, files.traits)
    try:
        with quiet_progress_bars(), quiet_logging():
            return files.traits.pipeline_class.from_pretrained(
                folder, dtype=dtype, variant=files.variant
            )
    except (OSError, ValueError, SafetensorError) as e:
        of_variant = f" in variant {files.variant!r}" if files.variant else ""
        raise ConfigError(
            f"the model in {folder} can't be loaded{of_variant}: {e}; "
            "if its files are damaged, delete them and download or save the model again"
        ) from e
