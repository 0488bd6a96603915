"""Pipelines as one file, their weights named as the original programs name them."""

from __future__ import annotations

import re
from typing import Any

import torch

Weights = dict[str, torch.Tensor]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
_OPEN_CLIP = {
    "encoder.layers.": "transformer.resblocks.",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    ".fc1.": ".c_fc.",
    ".fc2.": ".c_proj.",
    "self_attn.": "attn.",
    "final_layer_norm": "ln_final",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "text_projection.weight": "text_projection",
}


def stable_diffusion(pipeline: Any) -> Weights:
    """Return the weights of an SD 1, as in its .safetensors files."""
    return _backbone(pipeline) | _clip(pipeline.text_encoder, "cond_stage_model.transformer.")


def stable_diffusion_2(pipeline: Any) -> Weights:
    """Return the weights of an SD 2, whose text encoder is an OpenCLIP."""
    return _backbone(pipeline) | _open_clip(pipeline.text_encoder, "cond_stage_model.model.")


def sdxl(pipeline: Any) -> Weights:
    """Return the weights of an SDXL."""
    return (
        _backbone(pipeline)
        | _clip(pipeline.text_encoder, "conditioner.embedders.0.transformer.")
        | _open_clip(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    )


def _backbone(pipeline: Any) -> Weights:
    of_unet = pipeline.unet.state_dict().items()
    layers = pipeline.unet.config.layers_per_block
    weights = {f"model.diffusion_model.{_unet_key(k, layers)}": w for k, w in of_unet}
    ups = len(pipeline.vae.config.up_block_types)
    for key, weight in pipeline.vae.state_dict().items():
        name = f"first_stage_model.{_vae_key(key, ups)}"
        is_attention = ".attn_1." in name and weight.ndim == 2  # 1x1 convolutions there
        weights[name] = weight[:, :, None, None] if is_attention else weight
    return weights


def _rename(key: str, names: dict[str, str]) -> str:
    for ours, original in names.items():
        key = key.replace(ours, original)
    return key


def _unet_key(key: str, layers: int) -> str:
    block = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    if block:
        side, number, kind, place, rest = block[1], int(block[2]), block[3], int(block[4]), block[5]
        first = number * (layers + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.1.{rest}"
        index = first + place + (1 if side == "down" else 0)
        name = f"{'input' if side == 'down' else 'output'}_blocks.{index}"
        return f"{name}.0.{_rename(rest, _RESNET)}" if kind == "resnets" else f"{name}.1.{rest}"
    middle = re.match(r"mid_block\.(\w+)\.(\d+)\.(.*)", key)
    if middle and middle[1] == "resnets":
        return f"middle_block.{2 * int(middle[2])}.{_rename(middle[3], _RESNET)}"
    if middle:
        return f"middle_block.1.{middle[3]}"
    return _rename(key, _UNET)


def _vae_key(key: str, ups: int) -> str:
    key = key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        return _rename(key.replace("mid_block.attentions.0.", "mid.attn_1."), _VAE_ATTENTION)
    key = re.sub(r"up_blocks\.(\d)", lambda m: f"up.{ups - 1 - int(m[1])}", key)
    key = re.sub(r"down_blocks\.(\d)", r"down.\1", key).replace(".resnets.", ".block.")
    return key.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")


def _clip(encoder: Any, prefix: str) -> Weights:
    # transformers once had this prefix in all CLIP models, and so have the files
    of_encoder = encoder.state_dict().items()
    return {f"{prefix}text_model.{k.removeprefix('text_model.')}": w for k, w in of_encoder}


def _open_clip(encoder: Any, prefix: str) -> Weights:
    weights: Weights = {}
    of_encoder = {k.removeprefix("text_model."): w for k, w in encoder.state_dict().items()}
    for key, weight in of_encoder.items():
        if match := re.match(r"(.*self_attn)\.q_proj\.(\w+)", key):
            parts = [of_encoder[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"]
            name = f"{_rename(match[1] + '.', _OPEN_CLIP)}in_proj_{match[2]}"
            weights[prefix + name] = torch.cat(parts)
        elif not re.search(r"self_attn\.[kv]_proj", key):
            is_projection = key == "text_projection.weight"
            weights[prefix + _rename(key, _OPEN_CLIP)] = weight.T if is_projection else weight
    return weights
