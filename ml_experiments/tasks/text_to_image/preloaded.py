"""What drawing imports, whatever the model: seconds that a template spends once for all runs."""

from ml_experiments.tasks.text_to_image.quiet import quiet_imports

with quiet_imports():
    # the parts that nearly all pipelines share come with this one
    from diffusers import StableDiffusionPipeline  # noqa: F401

import ml_experiments.tasks.text_to_image.drawing
import ml_experiments.tasks.text_to_image.gallery  # noqa: F401
