"""From a model's folder to the class of pipeline that it says it is for."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.quiet import quiet_imports

PIPELINE_FILE = "model_index.json"


def text_to_image_class(folder: Path) -> type[Any]:
    """Return the diffusers class of a model that draws from text; only its index needs to be here.

    `AutoPipelineForText2Image` would import every family of models, which takes a second.

    Raises:
        ConfigError: If diffusers doesn't have the class, or it needs more than a text.
    """
    name = _class_name(folder / PIPELINE_FILE)
    with quiet_imports():
        import diffusers

        found = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        raise ConfigError(
            f"{folder / PIPELINE_FILE} names the pipeline class {name!r}, which diffusers "
            f"{diffusers.__version__} does not have; if the model is newer than that, upgrade "
            "diffusers, and if it brings its own code, it can't be used here"
        )
    parameters = inspect.signature(found.__call__).parameters
    if "prompt" not in parameters or {"image", "strength"} <= set(parameters):
        raise ConfigError(
            f"{folder} holds a {name}, which does not draw from a text alone; "
            "choose a text-to-image model"
        )
    return found


def _class_name(index_file: Path) -> Any:
    try:
        return json.loads(index_file.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{index_file} names no pipeline class: {e!r}") from e
