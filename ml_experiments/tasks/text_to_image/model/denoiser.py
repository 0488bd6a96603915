"""Changes to a pipeline's denoising network, once it is loaded: precision, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from ml_experiments.errors import ConfigError, suggest
from ml_experiments.tasks.text_to_image.model.pipeline_class import NETWORKS, PipelineTraits
from ml_experiments.tasks.text_to_image.model.quiet import quiet_logging

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import TextToImageConfig

Quantization = Literal["none", "int8", "int4", "fp8"]
_INT4_GROUP = 64


def denoising_networks(pipeline: Any) -> Sequence[Any]:
    """Return the network, or networks, that a pipeline runs once a step."""
    found = (getattr(pipeline, name, None) for name in NETWORKS)
    return [network for network in found if network is not None]


def check_speed_options(traits: PipelineTraits, config: TextToImageConfig) -> None:
    """Refuse the options that would have no effect on a model, before it is downloaded.

    Raises:
        ConfigError: If there is one; it says what to do.
    """
    networks = [c for c in map(traits.component_class, NETWORKS) if c is not None]
    name = traits.name
    if config.attention_slicing and not any(hasattr(c, "set_attention_slice") for c in networks):
        raise ConfigError(
            f"attention_slicing: the attention of a {name} can't be sliced; set it to false, and "
            "use cpu_offload or quantization to save memory"
        )
    if config.vae_tiling and not hasattr(traits.component_class("vae"), "enable_tiling"):
        raise ConfigError(f"vae_tiling: a {name} has no VAE that draws in tiles; set it to false")
    has_blocks = any(hasattr(c, "enable_cache") for c in networks)
    if config.first_block_cache is not None and not has_blocks:
        raise ConfigError(
            f"first_block_cache: the network of a {name} is not one of the transformers whose "
            "blocks diffusers can skip; leave it out"
        )
    if (backend := config.attention_backend) is not None:
        from diffusers.models.attention_dispatch import AttentionBackendName

        known = [each.value for each in AttentionBackendName]
        if backend not in known:
            raise ConfigError(
                f"attention_backend={backend!r} is none of diffusers' "
                f"backends{suggest(backend, known)}; those are: {', '.join(known)}"
            )


def quantize_denoiser(pipeline: Any, quantization: Quantization, device: torch.device) -> int:
    """Store the weights of the denoising network's linear layers in 8 or 4 bits; return how many.

    Raises:
        ConfigError: If the network has no layer that can be quantized.
    """
    with quiet_logging():
        from torchao.quantization import (
            Float8WeightOnlyConfig,
            Int4WeightOnlyConfig,
            Int8WeightOnlyConfig,
            quantize_,
        )

    config = {
        "int8": Int8WeightOnlyConfig,
        "fp8": Float8WeightOnlyConfig,
        # the format of the kernels that torch itself has
        "int4": lambda: Int4WeightOnlyConfig(
            group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d"
        ),
    }[quantization]()
    for network in denoising_networks(pipeline):
        quantize_(network, config, device=device)
    modules = [m for network in denoising_networks(pipeline) for m in network.modules()]
    weights = [m.weight for m in modules if isinstance(m, torch.nn.Linear)]
    count = sum(type(weight).__module__.startswith("torchao") for weight in weights)
    if not count:
        raise ConfigError(
            f"quantization={quantization}: a {type(pipeline).__name__} like this one has no layer "
            "that can be quantized; set quantization=none"
        )
    return count


def set_attention_backend(pipeline: Any, backend: str) -> None:
    """Let the denoising network compute attention by another implementation.

    Raises:
        ConfigError: If it isn't installed, or the network doesn't choose.
    """
    changed = 0
    for network in denoising_networks(pipeline):
        try:
            with quiet_logging():
                network.set_attention_backend(backend)
        except (ImportError, RuntimeError, ValueError) as e:
            raise ConfigError(
                f"attention_backend={backend!r} can't be used here: {e}; leave it out"
            ) from e
        processors = [getattr(module, "processor", None) for module in network.modules()]
        changed += sum(getattr(p, "_attention_backend", None) is not None for p in processors)
    if not changed:
        raise ConfigError(
            f"attention_backend={backend!r}: the attention of this {type(pipeline).__name__} has "
            "one implementation only; leave it out"
        )


def cache_first_block(pipeline: Any, threshold: float) -> None:
    """Skip the other blocks in steps in which the first one changes less than a threshold.

    Raises:
        ConfigError: If diffusers doesn't know the network's blocks.
    """
    with quiet_logging():
        from diffusers import FirstBlockCacheConfig

    for network in denoising_networks(pipeline):
        try:
            network.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        except (AttributeError, ValueError) as e:
            raise ConfigError(
                f"first_block_cache: diffusers can't skip blocks of this "
                f"{type(pipeline).__name__}: {e}; leave it out"
            ) from e


def use_channels_last(pipeline: Any) -> None:
    """Lay the weights of convolutions out as some devices compute them faster.

    Raises:
        ConfigError: If the denoising network has no convolutions.
    """
    networks = denoising_networks(pipeline)
    modules = [module for network in networks for module in network.modules()]
    convolutions = [
        m for m in modules if isinstance(m, torch.nn.Conv2d) and m.kernel_size != (1, 1)
    ]
    if len(convolutions) < 2:  # the patches of a transformer don't count
        raise ConfigError(
            f"channels_last: the network of a {type(pipeline).__name__} has no convolutions; "
            "leave it out"
        )
    parts = [*networks, getattr(pipeline, "vae", None)]
    for part in parts:
        if part is not None:
            part.to(memory_format=torch.channels_last)


def compile_denoiser(pipeline: Any) -> None:
    """Compile the denoising network, now rather than while the first picture is drawn.

    Raises:
        ConfigError: If torch can't compile on this machine.
    """
    for network in denoising_networks(pipeline):
        network.compile(dynamic=True)  # one program for every batch size and picture size
    try:
        pipeline(prompt=[""], num_inference_steps=2)
    except torch._dynamo.exc.TorchDynamoException as e:
        raise ConfigError(
            f"compile=true: torch can't compile the model on this machine: {e}; it needs a C++ "
            "compiler (apt-get install g++), and on a GPU triton; or set compile=false"
        ) from e
