"""Draws with TextToImageExperiment in a real worker, and looks at what comes back."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
from PIL import Image

from ml_experiments import (
    ExperimentConfig,
    LocalBackend,
    SoftTimeout,
    current_run,
    run_experiment,
)
from ml_experiments.runs.result import RunResult
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.tiny_digits import model_dir

Pixels = np.ndarray[Any, np.dtype[np.int16]]
PROMPT = "a red handwritten seven"


class Draws(TextToImageExperiment):
    """The experiment as it is, in the module whose template all helpers here share."""


def draw(
    backend: LocalBackend,
    experiment: type[TextToImageExperiment] = Draws,
    *,
    run_seed: int = 1,
    **config: Any,
) -> RunResult:
    """Run with few steps, unless the config says otherwise; the run may end in an error."""
    config = {"prompt": PROMPT, "num_inference_steps": 2, **config}
    return run_experiment(experiment, config, backend=backend, seed=run_seed)


def pixels(result: RunResult) -> Pixels:
    """Return the pictures of a run in the order of its results: count, height, width, 3."""
    result.raise_for_error()
    pictures = [Image.open(result.load(image["path"])) for image in result.results["images"]]
    return np.stack([np.asarray(picture.convert("RGB"), dtype=np.int16) for picture in pictures])


def difference(a: Pixels, b: Pixels) -> int:
    """Return the largest difference of any two pixels, out of 255."""
    return int(np.abs(a - b).max())


class LooksInside(TextToImageExperiment):
    """Adds to the results what only the loaded pipeline has."""

    def run(self) -> dict[str, Any]:
        results = super().run()
        pipeline = self._loaded.pipeline
        processors = pipeline.unet.attn_processors.values()
        return {
            **results,
            "attention": sorted({type(processor).__name__ for processor in processors}),
            "unet_dtype": str(pipeline.unet.dtype),
            "vae_tiles": pipeline.vae.use_tiling,
            "compiled": pipeline.unet._compiled_call_impl is not None,
        }


class FailsInNetwork(TextToImageExperiment):
    """Raises real exceptions from the denoising network's forward pass."""

    class Config(TextToImageExperiment.Config):
        max_pictures: int | None = None
        soft_timeout_in_batch: int | None = None
        failure: str | None = None
        returns_failure: bool = False

    config: Config

    def setup(self) -> None:
        import torch

        super().setup()
        experiment = self

        def before_forward(_network: Any, inputs: tuple[Any, ...]) -> None:
            config = experiment.config
            steps = config.num_inference_steps or 20
            batch, experiment.steps = experiment.steps // steps, experiment.steps + 1
            pictures = inputs[0].shape[0] // 2  # guidance draws each twice
            if config.max_pictures is not None and pictures > config.max_pictures:
                raise torch.OutOfMemoryError(f"CUDA out of memory. Tried {pictures} pictures")
            if batch == config.soft_timeout_in_batch:
                raise SoftTimeout("4 s have passed")
            if config.failure is not None:
                raise RuntimeError(config.failure)

        self._loaded.pipeline.unet.register_forward_pre_hook(before_forward)

    def run(self) -> dict[str, Any]:
        self.steps = 0
        try:
            return super().run()
        except RuntimeError as e:  # a run that ends in an error costs the next one a new worker
            if self.config.returns_failure:
                return {"type": type(e).__name__, "message": str(e)}
            raise


class LimitedMemory(TextToImageExperiment):
    """Gets no memory from the system when it decodes more pictures than so many together."""

    class Config(TextToImageExperiment.Config):
        max_pictures: int

    config: Config

    def setup(self) -> None:
        import torch

        super().setup()
        unlimited = resource.getrlimit(resource.RLIMIT_AS)
        experiment, decoder = self, self._loaded.pipeline.vae.decoder
        decode = decoder.forward

        def decode_within_limit(latents: Any, *arguments: Any, **options: Any) -> Any:
            if latents.shape[0] <= experiment.config.max_pictures:
                return decode(latents, *arguments, **options)
            resource.setrlimit(
                resource.RLIMIT_AS, (psutil.Process().memory_info().vms, unlimited[1])
            )
            try:
                # not by decoding: where oneDNN's own allocation is the first to fail, it makes
                # no primitive any more, however much memory there is later
                return torch.empty(2**28)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, unlimited)

        decoder.forward = decode_within_limit


class LimitedFiles(TextToImageExperiment):
    """Lets no file grow beyond so many bytes, as a full disk would, while it loads and draws."""

    class Config(TextToImageExperiment.Config):
        max_bytes: int

    config: Config
    limited_in: ClassVar[str] = "run"

    def setup(self) -> None:
        self._limited("setup", super().setup)

    def run(self) -> dict[str, Any]:
        return dict(self._limited("run", super().run))

    def _limited(self, method: str, call: Any) -> Any:
        if method != self.limited_in:
            return call()
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.config.max_bytes, before[1]))
        try:
            return call()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


class LimitedDownload(LimitedFiles):
    limited_in: ClassVar[str] = "setup"


class KilledOnce(TextToImageExperiment):
    """Is killed in its third batch, unless it is resumed."""

    def run(self) -> dict[str, Any]:
        marker = current_run().checkpoint_dir / "killed"
        if marker.exists():
            return super().run()
        vae, calls = self._loaded.pipeline.vae, []
        decode = vae.decode

        def decode_or_die(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            if len(calls) == 3:
                marker.touch()
                time.sleep(0.5)  # until the pictures before are on disk
                os.kill(os.getpid(), signal.SIGKILL)
            return decode(*arguments, **options)

        vae.decode = decode_or_die
        return super().run()


class Overflows(TextToImageExperiment):
    """Draws pictures some of which hold no numbers."""

    class Config(TextToImageExperiment.Config):
        overflowing: list[int]

    config: Config

    def run(self) -> dict[str, Any]:
        vae = self._loaded.pipeline.vae
        decode = vae.decode

        def overflow(*arguments: Any, **options: Any) -> Any:
            decoded = decode(*arguments, **options)
            decoded[0][self.config.overflowing] = float("nan")
            return decoded

        vae.decode = overflow
        try:
            return super().run()
        finally:
            vae.decode = decode


class Refusals:
    """Says how each of several configs is refused, by which method; in one worker, to be quick."""

    preload = TextToImageExperiment.preload  # once for all runs, not in each

    class Config(ExperimentConfig):
        configs: list[dict[str, Any]]

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self) -> list[str]:
        from ml_experiments.errors import Error

        answers = []
        for given in self.config.configs:
            experiment, method = TextToImageExperiment(None), "Config"
            try:
                experiment.config = TextToImageExperiment.Config(**given)
                for method in ("setup", "run"):
                    getattr(experiment, method)()
                answers.append(f"accepted: {experiment._loaded.files.commit}")
            except (Error, ValueError) as e:
                answers.append(f"{method}: {type(e).__name__}: {e}")
        return answers


def refusals(backend: LocalBackend, *configs: dict[str, Any]) -> list[str]:
    """Return how each config is refused: `method: exception class: text`."""
    few = [{"prompt": PROMPT, "num_inference_steps": 1, **config} for config in configs]
    result = run_experiment(Refusals, {"configs": few}, backend=backend, seed=1)
    answers: list[str] = result.raise_for_error().results
    return answers


class PlainDiffusers:
    """Draws one picture as a user of diffusers would."""

    preload = TextToImageExperiment.preload  # once for all runs, not in each

    class Config(ExperimentConfig):
        seed: int
        num_inference_steps: int
        guidance_scale: float

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self) -> Any:
        import torch
        from diffusers import DiffusionPipeline

        pipeline = DiffusionPipeline.from_pretrained(model_dir(), dtype=torch.float32)
        return pipeline(
            PROMPT,
            generator=torch.Generator("cpu").manual_seed(self.config.seed),
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.guidance_scale,
        ).images[0]


class MakeLora:
    """Writes a LoRA with random weights, for the network of tiny-digits or a wider one."""

    preload = TextToImageExperiment.preload  # once for all runs, not in each

    class Config(ExperimentConfig):
        fits: bool = True
        prefix: str = "unet"

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self) -> Path:
        import torch
        from diffusers import UNet2DConditionModel
        from peft import LoraConfig
        from peft.utils import get_peft_model_state_dict
        from safetensors.torch import save_file

        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_pretrained(model_dir() / "unet", dtype=torch.float32)
        targets = ["to_q", "to_k", "to_v"]
        unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=targets))
        weights = get_peft_model_state_dict(unet)
        if not self.config.fits:
            weights = {name: weight.repeat(2, 2) for name, weight in weights.items()}
        folder = current_run().output_dir / "lora"
        folder.mkdir()
        file = folder / "pytorch_lora_weights.safetensors"
        save_file({f"{self.config.prefix}.{n}": w.contiguous() for n, w in weights.items()}, file)
        return file


def make_lora(backend: LocalBackend, **config: Any) -> Path:
    """Return the file of a new LoRA."""
    result = run_experiment(MakeLora, config, backend=backend, seed=1).raise_for_error()
    return Path(result.load(result.results))


class MakeModel:
    """Writes a pipeline like tiny-digits with a random network, small enough to compile soon.

    With `is_unsafe`, it has a safety checker that finds every picture unsafe.
    """

    preload = TextToImageExperiment.preload  # once for all runs, not in each

    class Config(ExperimentConfig):
        is_unsafe: bool = False

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self) -> Path:
        import torch
        from diffusers import StableDiffusionPipeline, UNet2DConditionModel

        torch.manual_seed(0)
        pipeline = StableDiffusionPipeline.from_pretrained(model_dir(), dtype=torch.float32)
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("DownBlock2D",),
            mid_block_type=None,
            up_block_types=("UpBlock2D",),
            cross_attention_dim=64,
            norm_num_groups=4,
        )
        pipeline.register_modules(unet=unet)
        if self.config.is_unsafe:
            pipeline.register_modules(**_strict_safety_checker())
        folder = current_run().output_dir / "model"
        pipeline.save_pretrained(folder)
        return folder


def _strict_safety_checker() -> dict[str, Any]:
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision = {**small, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=8, vision_config=vision))
    checker.concept_embeds_weights.data.fill_(-2.0)  # no similarity is below that
    checker.special_care_embeds_weights.data.fill_(-2.0)
    square = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=square)
    return {"safety_checker": checker, "feature_extractor": processor}


def make_model(backend: LocalBackend, **config: Any) -> str:
    """Return the folder of a new model."""
    result = run_experiment(MakeModel, config, backend=backend, seed=1).raise_for_error()
    return str(result.load(result.results))
