"""Pictures from text, with any text-to-image pipeline of diffusers."""

from ml_experiments.tasks.text_to_image.experiment import TextToImageExperiment

__all__ = ["TextToImageExperiment"]

# its public name, which specs and results record
TextToImageExperiment.__module__ = __name__
