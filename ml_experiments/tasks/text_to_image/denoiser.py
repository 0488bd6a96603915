"""Changes to a pipeline's denoising network, once it is loaded: LoRA, quantization, compilation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.quiet import quiet_imports

_NETWORKS = ("unet", "transformer", "transformer_2")
_INT4_GROUP = 64


def denoising_networks(pipeline: Any) -> Sequence[torch.nn.Module]:
    """Return the network, or networks, that a pipeline runs once a step."""
    found = (getattr(pipeline, name, None) for name in _NETWORKS)
    return [network for network in found if network is not None]


def fuse_lora(pipeline: Any, file: Path) -> None:
    """Add a LoRA's weights to those of the pipeline, which costs nothing when it draws.

    Raises:
        ConfigError: If the LoRA was made for another architecture.
    """
    name = type(pipeline).__name__
    if not hasattr(pipeline, "load_lora_weights"):
        raise ConfigError(f"lora: diffusers can't load a LoRA into a {name}")
    try:
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="lora")
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as e:
        raise ConfigError(
            f"lora={str(file)!r} can't be loaded into this {name}: {e}; choose a LoRA that was "
            "trained on this model"
        ) from e
    changed = list(pipeline.get_list_adapters())
    if not changed:
        raise ConfigError(
            f"lora={str(file)!r} has no weight that belongs to this {name}; choose a LoRA that "
            "was trained on this model"
        )
    pipeline.fuse_lora(components=changed, adapter_names=["lora"])
    pipeline.unload_lora_weights()


def quantize_denoiser(
    pipeline: Any, quantization: Literal["int8", "int4"], device: torch.device
) -> int:
    """Store the weights of the denoising network's linear layers in 8 or 4 bits; return how many.

    Raises:
        ConfigError: If the network has no layer that can be quantized.
    """
    with quiet_imports():
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    if quantization == "int8":
        config = Int8WeightOnlyConfig()
    else:  # the format of the kernels that torch itself has
        config = Int4WeightOnlyConfig(
            group_size=_INT4_GROUP, int4_packing_format="tile_packed_to_4d"
        )
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
