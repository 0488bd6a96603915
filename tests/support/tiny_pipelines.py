"""A tiny pipeline with random weights of each text-to-image class of diffusers, built in code.

The sizes are those of diffusers' own tests. Nothing is downloaded: the tokenizers read bytes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ml_experiments.tasks.tiny_digits import model_dir

# with the reason
NOT_BUILT = {
    "GlmImagePipeline": "its processor can't be made in code: it comes with the checkpoint",
    "QwenImage21Pipeline": "its processor can't be made in code: it comes with the checkpoint",
    "NucleusMoEImagePipeline": "its processor can't be made in code: it comes with the checkpoint",
    "ZImageOmniPipeline": "it needs a Siglip2 model whose features have one fixed size",
    "HunyuanDiTPipeline": "it draws a million pixels or more: minutes on a CPU",
    "HunyuanDiTPAGPipeline": "it draws a million pixels or more: minutes on a CPU",
    "PRXPipeline": "it needs the package ftfy",
    "WuerstchenCombinedPipeline": "its parts fit together at a million pixels only",
    "Ideogram4Pipeline": "it reads layers of a Qwen3-VL that exist from 36 layers on",
}


def build(name: str) -> Any:
    """Return the tiny pipeline of a class of diffusers; the same weights each time."""
    import diffusers
    import torch

    pipeline_class = getattr(diffusers, name)
    torch.manual_seed(0)
    parts = _parts_of(name)
    known = set(inspect.signature(pipeline_class.__init__).parameters) - {"self"}
    for part in known - parts.keys():
        if part in ("safety_checker", "feature_extractor", "image_encoder", "watermarker"):
            parts[part] = None
    if "requires_safety_checker" in known:
        parts["requires_safety_checker"] = False
    pipeline = pipeline_class(**parts)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _randomize(part)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _randomize(module: Any) -> None:
    """Let what starts at zero do something, such as the last layers of transformers."""
    import torch

    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.isfinite().all() or parameter.abs().max() < 1e-6:
                parameter.normal_(0, 0.1)


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(model_dir() / "tokenizer")


def byte_tokenizer(kind: str = "PreTrainedTokenizerFast", length: int = 64) -> Any:
    import tokenizers
    import transformers

    specials = ["<pad>", "</s>", "<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: place for place, token in enumerate([*specials, *alphabet])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(specials)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return getattr(transformers, kind)(
        tokenizer_object=model,
        model_max_length=length,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        bos_token="<s>",
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m['content'] if m['content'] is string else "
            "m['content'][0]['text'] }}<|im_end|>{% endfor %}"
        ),
    )


def clip(projection: bool = False, size: int = 32) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        vocab_size=len(tokenizer),
        hidden_size=size,
        projection_dim=size,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=5,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def t5(kind: str = "T5") -> Any:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=300, d_model=32, d_ff=37, d_kv=8, num_layers=2, num_heads=4, dropout_rate=0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def language_model(config: str, model: str, size: int = 16, **more: Any) -> Any:
    import transformers

    options = {
        "vocab_size": 300,
        "hidden_size": size,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        **more,
    }
    return getattr(transformers, model)(getattr(transformers, config)(**options))


def qwen3_vl() -> Any:
    from transformers import Qwen3VLConfig, Qwen3VLModel

    sizes = {"hidden_size": 16, "intermediate_size": 16}
    text = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    vision = {"depth": 2, "num_heads": 2, "out_hidden_size": 16}
    return Qwen3VLModel(
        Qwen3VLConfig(
            text_config={**sizes, **text, "head_dim": 8, "vocab_size": 300},
            vision_config={**sizes, **vision},
        )
    )


def vae(latents: int = 4, **more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=latents,
        norm_num_groups=2,
        **more,
    )


def flux_vae(kind: str = "AutoencoderKL") -> Any:
    import diffusers

    return getattr(diffusers, kind)(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=1,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        **({"shift_factor": 0.06, "scaling_factor": 1.5} if kind == "AutoencoderKL" else {}),
    )


def qwen_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def movq() -> Any:
    from diffusers import VQModel

    return VQModel(
        block_out_channels=[32] * 4,
        down_block_types=["DownEncoderBlock2D"] * 3 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    options = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        **more,
    }
    return UNet2DConditionModel(**options)


def simple_unet(**more: Any) -> Any:
    return unet(
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        **more,
    )


def make(kind: str, **options: Any) -> Any:
    """Return an object of a class of diffusers."""
    import diffusers

    return getattr(diffusers, kind)(**options)


def flow(**options: Any) -> Any:
    return make("FlowMatchEulerDiscreteScheduler", **options)


def _stable_diffusion(scheduler: str = "DDIMScheduler", **of_unet: Any) -> dict[str, Any]:
    options = {"steps_offset": 1, "clip_sample": False} if scheduler == "DDIMScheduler" else {}
    return {
        "vae": vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(**of_unet),
        "scheduler": make(scheduler, **options),
    }


def _sdxl() -> dict[str, Any]:
    return _stable_diffusion(
        cross_attention_dim=32 + 48,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=48 + 6 * 8,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    ) | {"text_encoder_2": clip(projection=True, size=48), "tokenizer_2": clip_tokenizer()}


def _sd3() -> dict[str, Any]:
    return {
        "transformer": make(
            "SD3Transformer2DModel",
            sample_size=16,
            patch_size=1,
            in_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
            pos_embed_max_size=96,
        ),
        "scheduler": flow(),
        "vae": vae(shift_factor=0.06, scaling_factor=1.5),
        "text_encoder": clip(projection=True),
        "text_encoder_2": clip(projection=True),
        "text_encoder_3": t5(),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "tokenizer_3": byte_tokenizer(),
    }


def _flux(guidance: bool = True) -> dict[str, Any]:
    return {
        "transformer": make(
            "FluxTransformer2DModel",
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
            guidance_embeds=guidance,
        ),
        "scheduler": flow(),
        "vae": flux_vae(),
        "text_encoder": clip(),
        "tokenizer": clip_tokenizer(),
        "text_encoder_2": t5(),
        "tokenizer_2": byte_tokenizer(),
    }


def _flux2(is_klein: bool) -> dict[str, Any]:
    transformer = make(
        "Flux2Transformer2DModel",
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16 * 3,
        timestep_guidance_channels=256,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=not is_klein,
    )
    layers = {"num_hidden_layers": 32, "head_dim": 8}
    encoder = language_model("Qwen3Config", "Qwen3ForCausalLM", **layers)
    return {
        "transformer": transformer,
        "scheduler": flow(),
        "vae": flux_vae("AutoencoderKLFlux2"),
        "text_encoder": encoder,
        "tokenizer": byte_tokenizer(length=512),
    }


def _kandinsky_prior(size: int) -> dict[str, Any]:
    import torch
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    prior = make(
        "PriorTransformer",
        num_attention_heads=2,
        attention_head_dim=12,
        embedding_dim=size,
        num_layers=1,
        num_embeddings=clip_tokenizer().model_max_length,
    )
    prior.clip_std = torch.nn.Parameter(torch.ones(prior.clip_std.shape))
    vision = CLIPVisionConfig(
        hidden_size=size,
        image_size=32,
        projection_dim=size,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=1,
        patch_size=16,
    )
    return {
        "prior_prior": prior,
        "prior_image_encoder": CLIPVisionModelWithProjection(vision),
        "prior_text_encoder": clip(projection=True, size=size),
        "prior_tokenizer": clip_tokenizer(),
        "prior_scheduler": make(
            "UnCLIPScheduler", variance_type="fixed_small_log", prediction_type="sample"
        ),
        "prior_image_processor": CLIPImageProcessor(size=32, crop_size=32),
    }


def _kandinsky() -> dict[str, Any]:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    config = MCLIPConfig(
        numDims=32,
        transformerDimensions=32,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=300,
    )
    return {
        "text_encoder": MultilingualCLIP(config),
        "tokenizer": byte_tokenizer(),
        "unet": simple_unet(
            out_channels=8,
            addition_embed_type="text_image",
            encoder_hid_dim=32,
            encoder_hid_dim_type="text_image_proj",
        ),
        "movq": movq(),
        "scheduler": make("DDIMScheduler", clip_sample=False, steps_offset=1),
        **_kandinsky_prior(32),
    }


def _kandinsky22() -> dict[str, Any]:
    return {
        "unet": simple_unet(
            out_channels=8,
            addition_embed_type="image",
            encoder_hid_dim=32,
            encoder_hid_dim_type="image_proj",
        ),
        "movq": movq(),
        "scheduler": make("DDIMScheduler", clip_sample=False, steps_offset=1),
        **_kandinsky_prior(32),
    }


def _kandinsky3() -> dict[str, Any]:
    network = make(
        "Kandinsky3UNet",
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=32,
    )
    return {
        "unet": network,
        "scheduler": make("DDPMScheduler"),
        "movq": movq(),
        "text_encoder": t5(),
        "tokenizer": byte_tokenizer(),
    }


def _wuerstchen() -> dict[str, Any]:
    from diffusers.pipelines.deprecated.wuerstchen import (
        PaellaVQModel,
        WuerstchenDiffNeXt,
        WuerstchenPrior,
    )

    decoder = WuerstchenDiffNeXt(
        c_cond=32,
        c_hidden=[16, 32, 64, 128],
        nhead=[-1, -1, 1, 2],
        blocks=[1, 1, 1, 1],
        level_config=["CT", "CT", "CTA", "CTA"],
        clip_embd=32,
        dropout=[0.0] * 4,
        inject_effnet=[False, True, True, True],
    )
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip(),
        "decoder": decoder,
        "scheduler": make("DDPMWuerstchenScheduler"),
        "vqgan": PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=24),
        "prior_tokenizer": clip_tokenizer(),
        "prior_text_encoder": clip(),
        "prior_prior": WuerstchenPrior(c_in=16, c=8, depth=2, c_cond=32, c_r=8, nhead=2),
        "prior_scheduler": make("DDPMWuerstchenScheduler"),
    }


def _cascade() -> dict[str, Any]:
    from diffusers.models import StableCascadeUNet
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

    res, time, attention = "SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"
    prior = StableCascadeUNet(
        conditioning_dim=32,
        block_out_channels=(32, 32),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=((res, time, attention),) * 2,
        clip_image_in_channels=768,
        switch_level=(False,),
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
        dropout=(0.0, 0.0),
    )
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(8, 16, 16, 32),
        num_attention_heads=(-1, -1, 1, 2),
        down_num_layers_per_block=(1, 1, 1, 1),
        up_num_layers_per_block=(1, 1, 1, 1),
        down_blocks_repeat_mappers=(1, 1, 1, 1),
        up_blocks_repeat_mappers=(1, 1, 1, 1),
        block_types_per_layer=((res, time),) * 2 + ((res, time, attention),) * 2,
        switch_level=None,
        clip_text_pooled_in_channels=32,
        dropout=(0.0,) * 4,
    )
    return {
        "tokenizer": clip_tokenizer(),
        "text_encoder": clip(projection=True),
        "decoder": decoder,
        "scheduler": make("DDPMWuerstchenScheduler"),
        "vqgan": PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=24),
        "prior_tokenizer": clip_tokenizer(),
        "prior_text_encoder": clip(projection=True),
        "prior_prior": prior,
        "prior_scheduler": make("DDPMWuerstchenScheduler"),
        "prior_feature_extractor": None,
        "prior_image_encoder": None,
    }


def _if() -> dict[str, Any]:
    network = simple_unet(
        sample_size=16,
        in_channels=3,
        out_channels=6,
        encoder_hid_dim=32,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        act_fn="gelu",
    )
    return {
        "tokenizer": byte_tokenizer(length=77),
        "text_encoder": t5(),
        "unet": network,
        "scheduler": make("DDPMScheduler", variance_type="learned_range"),
    }


def _pixart() -> dict[str, Any]:
    transformer = make(
        "PixArtTransformer2DModel",
        sample_size=32,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        num_embeds_ada_norm=1000,
    )
    return {
        "tokenizer": byte_tokenizer(),
        "text_encoder": t5(),
        "vae": vae(),
        "transformer": transformer,
        "scheduler": make("DDIMScheduler", clip_sample=False),
    }


def _sana() -> dict[str, Any]:
    transformer = make(
        "SanaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=16,
    )
    autoencoder = make(
        "AutoencoderDC",
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        decoder_block_types=("ResBlock",) * 5 + ("EfficientViTBlock",),
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_qkv_multiscales=((),) * 5 + ((5,),),
        decoder_qkv_multiscales=((),) * 5 + ((5,),),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=[1] * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    return {
        "tokenizer": byte_tokenizer(length=300),
        "text_encoder": language_model("Gemma2Config", "Gemma2Model", size=8, head_dim=16),
        "vae": autoencoder,
        "transformer": transformer,
        "scheduler": flow(shift=7.0),
    }


def _aura_flow() -> dict[str, Any]:
    transformer = make(
        "AuraFlowTransformer2DModel",
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        out_channels=4,
        pos_embed_max_size=1024,
    )
    return {
        "tokenizer": byte_tokenizer(),
        "text_encoder": t5("UMT5"),
        "vae": vae(),
        "transformer": transformer,
        "scheduler": flow(),
    }


def _krea2() -> dict[str, Any]:
    transformer = make(
        "Krea2Transformer2DModel",
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=16,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
        rope_theta=1000.0,
    )
    return {
        "transformer": transformer,
        "vae": qwen_vae(),
        "scheduler": flow(use_dynamic_shifting=True, max_image_seq_len=6400),
        "text_encoder": qwen3_vl(),
        "tokenizer": byte_tokenizer("Qwen2Tokenizer", length=512),
        "text_encoder_select_layers": (0, 1, 2),
    }


def _qwen() -> dict[str, Any]:
    transformer = make(
        "QwenImageTransformer2DModel",
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=16,
        guidance_embeds=False,
        axes_dims_rope=(8, 4, 4),
    )
    return {
        "transformer": transformer,
        "vae": qwen_vae(),
        "scheduler": flow(),
        # the pipeline reads the last hidden state only, which any language model has
        "text_encoder": language_model("Qwen3Config", "Qwen3Model", head_dim=8),
        "tokenizer": byte_tokenizer(length=2048),
    }


def _z_image() -> dict[str, Any]:
    transformer = make(
        "ZImageTransformer2DModel",
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    return {
        "transformer": transformer,
        "vae": vae(16, scaling_factor=0.36, shift_factor=0.12),
        "scheduler": flow(),
        "text_encoder": language_model("Qwen3Config", "Qwen3Model", head_dim=8),
        "tokenizer": byte_tokenizer(length=512),
    }


def _lumina(is_second: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "sample_size": 4,
        "patch_size": 2,
        "in_channels": 4,
        "hidden_size": 8,
        "num_layers": 2,
        "num_attention_heads": 1,
        "num_kv_heads": 1,
        "multiple_of": 16,
        "scaling_factor": 1.0,
    }
    if is_second:
        options |= {"axes_dim_rope": [4, 2, 2], "cap_feat_dim": 8}
        encoder = language_model("Gemma2Config", "Gemma2Model", size=8, head_dim=4)
    else:
        options |= {"learn_sigma": True, "qk_norm": True, "cross_attention_dim": 8}
        encoder = language_model("GemmaConfig", "GemmaForCausalLM", size=8, head_dim=4)
    kind = "Lumina2Transformer2DModel" if is_second else "LuminaNextDiT2DModel"
    return {
        "transformer": make(kind, **options),
        "vae": vae(shift_factor=0.06, scaling_factor=1.5),
        "scheduler": flow(),
        "text_encoder": encoder,
        "tokenizer": byte_tokenizer(length=256),
    }


def _chroma() -> dict[str, Any]:
    transformer = make(
        "ChromaTransformer2DModel",
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(),
        "scheduler": flow(),
        "text_encoder": t5(),
        "tokenizer": byte_tokenizer(),
    }


def _cogview(is_fourth: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 4,
        "num_attention_heads": 4 if is_fourth else 2,
        "out_channels": 4,
        "text_embed_dim": 32,
        "time_embed_dim": 8,
        "condition_dim": 4 if is_fourth else 2,
    }
    if is_fourth:
        transformer = make("CogView4Transformer2DModel", **options)
        encoder = language_model(
            "GlmConfig", "GlmForCausalLM", size=32, head_dim=16, pad_token_id=0
        )
    else:
        options |= {"pos_embed_max_size": 32, "sample_size": 8}
        transformer, encoder = make("CogView3PlusTransformer2DModel", **options), t5()
    scheduler = flow(use_dynamic_shifting=True, time_shift_type="linear")
    return {
        "transformer": transformer,
        "vae": vae(),
        "scheduler": scheduler if is_fourth else make("CogVideoXDDIMScheduler"),
        "text_encoder": encoder,
        "tokenizer": byte_tokenizer(length=224),
    }


def _ovis() -> dict[str, Any]:
    transformer = make(
        "OvisImageTransformer2DModel",
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return {
        "transformer": transformer,
        "vae": flux_vae(),
        "scheduler": flow(),
        "text_encoder": language_model("Qwen3Config", "Qwen3Model", size=32, head_dim=8),
        "tokenizer": byte_tokenizer("Qwen2Tokenizer", length=512),
    }


def _prx() -> dict[str, Any]:
    from transformers import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    config = T5GemmaModuleConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=64,
        layer_types=["full_attention"],
        query_pre_attn_scalar=4,
        dropout_rate=0.0,
    )
    transformer = make(
        "PRXTransformer2DModel",
        patch_size=1,
        in_channels=4,
        context_in_dim=8,
        hidden_size=8,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[2, 2],
    )
    return {
        "transformer": transformer,
        "scheduler": flow(),
        "text_encoder": T5GemmaEncoder(config),
        "tokenizer": byte_tokenizer("GemmaTokenizerFast"),
        "vae": vae(),
        "default_sample_size": 256,
    }


def _parts_of(name: str) -> dict[str, Any]:
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "StableDiffusionPipeline": _stable_diffusion,
        "StableDiffusionXLPipeline": _sdxl,
        "StableDiffusion3Pipeline": _sd3,
        "LatentConsistencyModelPipeline": lambda: _stable_diffusion(
            "LCMScheduler", time_cond_proj_dim=32
        ),
        "IFPipeline": _if,
        "KandinskyCombinedPipeline": _kandinsky,
        "KandinskyV22CombinedPipeline": _kandinsky22,
        "Kandinsky3Pipeline": _kandinsky3,
        "WuerstchenCombinedPipeline": _wuerstchen,
        "StableCascadeCombinedPipeline": _cascade,
        "PixArtAlphaPipeline": _pixart,
        "PixArtSigmaPipeline": _pixart,
        "SanaPipeline": _sana,
        "AuraFlowPipeline": _aura_flow,
        "FluxPipeline": _flux,
        "FluxKontextPipeline": _flux,
        "Flux2Pipeline": lambda: _flux2(is_klein=False),
        "Flux2KleinPipeline": lambda: _flux2(is_klein=True),
        "Krea2Pipeline": _krea2,
        "LuminaPipeline": lambda: _lumina(is_second=False),
        "Lumina2Pipeline": lambda: _lumina(is_second=True),
        "ChromaPipeline": _chroma,
        "CogView3PlusPipeline": lambda: _cogview(is_fourth=False),
        "CogView4Pipeline": lambda: _cogview(is_fourth=True),
        "QwenImagePipeline": _qwen,
        "ZImagePipeline": _z_image,
        "OvisImagePipeline": _ovis,
        "PRXPipeline": _prx,
    }
    return makers[name.replace("PAGPipeline", "Pipeline")]()
