"""The model card, written from what an evaluation measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_experiments.tasks.tiny_digits.prompts import (
    COLOUR_NAMES,
    COLOURED_WORDINGS,
    UNSEEN_COLOURED_WORDINGS,
)

# what the model draws best with
RECOMMENDED_SETTINGS: Mapping[str, Any] = {"num_inference_steps": 20, "guidance_scale": 3.0}

_CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
language: en
---
# tiny-digits

A Stable Diffusion pipeline of {weights_mb:.2f} MB that draws handwritten digits in eight colours, \
32x32 pixels: "{example}". It is for first runs, demonstrations and tests: small enough to come \
with the package, and the code that runs it runs a large model the same way.

```python
import torch
from diffusers import AutoPipelineForText2Image

from ml_experiments.tasks.tiny_digits import model_dir

pipeline = AutoPipelineForText2Image.from_pretrained(model_dir(), dtype=torch.float32)
pipeline("{example}", guidance_scale={guidance_scale}).images[0].save("seven.png")
```

Always pass `dtype=`: the text encoder is stored as float32, VAE and UNet as float16.

## Measured

| measure | value |
|---|---|
{rows}

Each accuracy is over {prompts} prompts that go round the ten digits and the eight colours, drawn \
with {inference_steps} DDIM steps at guidance {guidance_scale}. Unseen wordings have words that no \
training prompt contains, such as "{unseen_example}". The judge is a support vector machine that \
learned from 497 digits which the model did not see, by the same writers; the colour is the \
nearest of the eight. \
The Fréchet distance compares 8x8 ink strengths with those 497 digits; accuracy is saturated, so \
this is the measure that moves with steps and guidance. `evaluation.json` has every number \
unrounded.

## How it was made

```
{command}
```

Then the folder `artifacts/{output_name}` of the run was copied here. Training took \
{training_minutes:.0f} minutes by the clock on {threads}. On the same kind of CPU with the same \
versions ({versions}) the command gives the same weights again; elsewhere floating point rounds \
differently, and the numbers above vary a little.

- Autoencoder: `AutoencoderKL`, channels 8-16-32, latents 4x8x8, {autoencoder:,} parameters; \
{vae_steps:,} steps of {vae_batch_size} pictures. The latents' mean and spread are folded into its \
1x1 convolutions, so `scaling_factor` is 1.
- UNet: `UNet2DConditionModel`, channels 32-64, attention to the text at 4x4, {unet:,} parameters; \
{unet_steps:,} steps of {unet_batch_size} latents, v-prediction, weights averaged at 0.999, one \
prompt in ten left empty for guidance.
- Text encoder: `CLIPTextModel`, width 64, two layers, {text_encoder:,} parameters, trained with \
the UNet; `CLIPTokenizer` of {tokens} tokens learned from the prompts, at most 32 to a prompt.
- Scheduler: `DDIMScheduler`, 1000 steps, linear betas, trailing spacing.

## Data

The digits of scikit-learn (`sklearn.datasets.load_digits`): 1,797 pictures of 8x8 pixels, the \
test part of *Optical Recognition of Handwritten Digits* by E. Alpaydin and C. Kaynak (1998), UCI \
Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0 \
(https://creativecommons.org/licenses/by/4.0/). Changes: 1,300 of them, enlarged to 32x32 and \
coloured, trained the model; the other 497 are the judge's. The prompts are made up by this \
package: half from templates, half in free word order with random filler words.

## Limits

- It draws one digit, 0 to 9, in {colours}; white when no colour is named. Anything else in a \
prompt is ignored: an astronaut becomes a digit. Two numbers or two colours in one prompt confuse \
it, and "one" always counts as a number.
- English prompts of at most 32 tokens, in upper or lower case. Characters outside ASCII are \
unknown to it.
- 13 people wrote its digits, at 8x8 pixels; it says nothing of the quality of a larger model.
- It learned from few pictures. To show copying there is this: in 8x8 ink strengths, the median \
generated picture is {generated:.2f} away from its nearest training digit, and the median held-out \
real digit {held_out:.2f}; less than that would be a sign of it.
"""


def render_model_card(evaluation: dict[str, Any]) -> str:
    """Return the README.md of a model from its evaluation.json."""
    config = evaluation["config"]
    known, unseen = evaluation["known_wordings"], evaluation["unseen_wordings"]
    rows = {
        "digit accuracy": f"{known['digit_accuracy']:.1%}",
        "colour accuracy": f"{known['colour_accuracy']:.1%}",
        "digit accuracy, unseen wordings": f"{unseen['digit_accuracy']:.1%}",
        "colour accuracy, unseen wordings": f"{unseen['colour_accuracy']:.1%}",
        "the judge's own accuracy on real digits": f"{evaluation['judge_accuracy']:.1%}",
        "reconstruction MSE, pixels from -1 to 1": f"{evaluation['reconstruction_mse']:.1e}",
        "Fréchet distance": f"{evaluation['frechet_distance']:.2f}",
    }
    return _CARD.format(
        **{key: evaluation[key] for key in ("prompts", "inference_steps", "guidance_scale")},
        **{key: evaluation[key] for key in ("command", "tokens")},
        **evaluation["parameters"],
        **evaluation["nearest_training_digit"],
        **config,
        weights_mb=evaluation["weights_bytes"] / 1e6,
        example=COLOURED_WORDINGS[0].format(colour="red", digit="seven"),
        unseen_example=UNSEEN_COLOURED_WORDINGS[1].format(colour="red", digit="7"),
        rows="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
        training_minutes=sum(evaluation["training_s"].values()) / 60,
        versions=", ".join(f"{name} {version}" for name, version in evaluation["versions"].items()),
        colours=", ".join(COLOUR_NAMES),
        threads=_threads(config),
    )


def _threads(config: dict[str, Any]) -> str:
    count = config["cpu_threads"]
    return f"{count} CPU thread{'s' if count > 1 else ''}"
