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
    return weights | _vae(pipeline)


def _vae(pipeline: Any) -> Weights:
    weights = {}
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


_EMBEDDERS = {
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
}
_SD3 = {
    **_EMBEDDERS,
    "pos_embed.pos_embed": "pos_embed",
    "pos_embed.proj": "x_embedder.proj",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "transformer_blocks.": "joint_blocks.",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "norm1.linear": "x_block.adaLN_modulation.1",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.add_q_proj": "context_block.attn.qkv",
    "attn.to_q": "x_block.attn.qkv",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "proj_out": "final_layer.linear",
}
_FLUX = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder": "txt_in",
    "x_embedder": "img_in",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_FLUX_DOUBLE = {
    "transformer_blocks.": "double_blocks.",
    "norm1_context.linear": "txt_mod.lin",
    "norm1.linear": "img_mod.lin",
    "attn.to_add_out": "txt_attn.proj",
    "attn.to_out.0": "img_attn.proj",
    "attn.add_q_proj": "txt_attn.qkv",
    "attn.to_q": "img_attn.qkv",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
}
_FLUX_SINGLE = {
    "single_transformer_blocks.": "single_blocks.",
    "norm.linear": "modulation.lin",
    "attn.to_q": "linear1",
    "proj_out": "linear2",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}


def sd3(pipeline: Any) -> Weights:
    """Return the weights of an SD 3 without its text encoders, as in sd3_medium.safetensors."""
    of_transformer = _joined(pipeline.transformer.state_dict())
    last = pipeline.transformer.config.num_layers - 1
    weights = {}
    for key, weight in of_transformer.items():
        is_swapped = key.startswith((f"transformer_blocks.{last}.norm1_context", "norm_out."))
        name = f"model.diffusion_model.{_rename(key, _SD3)}"
        weights[name] = _shift_first(weight) if is_swapped else weight
    return weights | _vae(pipeline)


def flux(pipeline: Any) -> Weights:
    """Return the weights of the transformer of a Flux, as in flux1-dev.safetensors."""
    weights = {}
    for key, weight in _joined(pipeline.transformer.state_dict()).items():
        if key.startswith("single_transformer_blocks."):
            weights[_rename(key, _FLUX_SINGLE)] = weight
        elif key.startswith("transformer_blocks."):
            weights[_rename(key, _FLUX_DOUBLE)] = weight
        elif key.startswith("norm_out."):
            weights[_rename(key, _FLUX)] = _shift_first(weight)
        else:
            weights[_rename(key, _FLUX).replace("proj_out", "final_layer.linear")] = weight
    return weights


def _joined(weights: Weights) -> Weights:
    """Return weights with those of query, key, value (and of what follows them) in one."""
    joined: Weights = {}
    for key, weight in weights.items():
        if ".attn.to_q." in key:
            names = [key, key.replace("to_q", "to_k"), key.replace("to_q", "to_v")]
            if key.startswith("single_"):
                names.append(key.replace("attn.to_q", "proj_mlp"))
            joined[key] = torch.cat([weights[name] for name in names])
        elif ".attn.add_q_proj." in key:
            names = [key.replace("add_q", f"add_{part}") for part in "qkv"]
            joined[key] = torch.cat([weights[name] for name in names])
        elif not re.search(r"\.attn\.(to_[kv]|add_[kv]_proj)\.|\.proj_mlp\.", key):
            joined[key] = weight
    return joined


def _shift_first(weight: torch.Tensor) -> torch.Tensor:
    scale, shift = weight.chunk(2)
    return torch.cat([shift, scale])
