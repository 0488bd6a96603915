"""What each option for speed or memory of the pictures does on a CPU: time, memory, pixels.

Two models with random weights, large enough that the network takes nearly all of the time: one
with a U-Net like Stable Diffusion's, one with a transformer like Flux's. Each option has a worker
of its own beside one without the option; they draw the same picture in turn. What is compared is
processor time with one thread, which a busy machine changes little. The first run of each worker,
which compiles, isn't counted.

    python benchmarks/picture_speed.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.execution.observer import Observer
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.tiny_digits import model_dir

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("U-Net", {"channels_last": True}),
    ("U-Net", {"dtype": "bfloat16"}),
    ("U-Net", {"quantization": "int8"}),
    ("U-Net", {"quantization": "fp8"}),
    ("U-Net", {"attention_slicing": True}),
    ("U-Net", {"vae_tiling": True}),
    # random weights change more from step to step than trained ones, for which it is 0.05 to 0.2
    ("transformer", {"first_block_cache": 0.6}),
    ("transformer", {"attention_backend": "native"}),
    ("transformer", {"quantization": "int8"}),
    ("transformer", {"compile": True}),
)
DRAWING: dict[str, dict[str, Any]] = {
    "U-Net": {"height": 128, "width": 128, "num_inference_steps": 3, "guidance_scale": 1.0},
    "transformer": {"height": 128, "width": 128, "num_inference_steps": 8},
}


class Timed(TextToImageExperiment):
    """Adds the processor time of its runs to the results."""

    def run(self) -> dict[str, Any]:
        """Draw."""
        started = time.process_time()
        results = super().run()
        return {**results, "cpu_seconds": time.process_time() - started}


def make_unet_model(folder: Path) -> None:
    """Write tiny-digits with a larger network."""
    import torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(model_dir())
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(96, 192),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=pipeline.unet.config.cross_attention_dim,
        in_channels=pipeline.unet.config.in_channels,
        out_channels=pipeline.unet.config.out_channels,
    )
    pipeline.register_modules(unet=unet)
    pipeline.save_pretrained(folder)


def make_transformer_model(folder: Path) -> None:
    """Write a small Flux."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from transformers import (
        ByT5Tokenizer,
        CLIPTextModel,
        CLIPTokenizer,
        T5Config,
        T5EncoderModel,
    )

    torch.manual_seed(0)
    clip = CLIPTextModel.from_pretrained(model_dir() / "text_encoder")
    t5 = T5Config(vocab_size=384, d_model=64, d_ff=128, d_kv=16, num_layers=1, num_heads=4)
    pipeline = FluxPipeline(
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=2,
            num_single_layers=4,
            attention_head_dim=64,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=clip.config.hidden_size,
            axes_dims_rope=(16, 24, 24),
            guidance_embeds=True,
        ),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            shift_factor=0.0,
        ),
        text_encoder=clip,
        tokenizer=CLIPTokenizer.from_pretrained(model_dir() / "tokenizer"),
        text_encoder_2=T5EncoderModel(t5),
        tokenizer_2=ByT5Tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipeline.save_pretrained(folder)


def draw(backend: LocalBackend, runs_dir: Path, config: dict[str, Any]) -> Any:
    """Return the result of a run that draws a picture."""
    return run_experiment(
        Timed,
        {"prompt": "a red seven", **config},
        backend=backend,
        runs_dir=runs_dir,
        observer=Observer(),
        seed=1,
    ).raise_for_error()


def pixels(result: Any) -> Any:
    """Return the pictures of a run."""
    files = [result.load(image["path"]) for image in result.results["images"]]
    return np.stack([np.asarray(Image.open(file), dtype=int) for file in files])


def compare(plain: LocalBackend, folder: Path, model: str, option: dict[str, Any], n: int) -> str:
    """Return the row of an option: seconds without and with it, ratio, memory, difference."""
    common = {"model_name": str(folder / model), **DRAWING[model]}
    runs: tuple[list[Any], list[Any]] = ([], [])
    with LocalBackend() as changed:
        for _ in range(n + 1):  # the first ones load and compile
            runs[0].append(draw(plain, folder / "runs", common))
            runs[1].append(draw(changed, folder / "runs", {**common, **option}))
    without, with_it = ([r.results["cpu_seconds"] for r in own[1:]] for own in runs)
    ratio = statistics.median(a / b for a, b in zip(without, with_it, strict=True))
    apart = np.abs(pixels(runs[0][-1]) - pixels(runs[1][-1])).mean()
    ((name, value),) = option.items()
    return (
        f"| `{name}={str(value).lower()}` | {model} | {statistics.median(without):.2f} "
        f"| {statistics.median(with_it):.2f} | {ratio:.2f}x | {apart:.1f} |"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary, LocalBackend() as plain:
        folder = Path(temporary)
        make_unet_model(folder / "U-Net")
        make_transformer_model(folder / "transformer")
        print(
            "| option | network | CPU s a picture, without | with | faster | pixels apart, of 255 |"
        )
        print("|---|---|---|---|---|---|")
        for model, option in OPTIONS:
            print(compare(plain, folder, model, option, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
