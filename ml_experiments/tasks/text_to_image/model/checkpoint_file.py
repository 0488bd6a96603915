"""Models that are one file, as most community checkpoints are: .safetensors, .gguf, .ckpt."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.model.pipeline_class import NETWORKS, PipelineTraits
from ml_experiments.tasks.text_to_image.model.quiet import (
    quiet_logging,
    quiet_progress_bars,
    shorten,
)
from ml_experiments.tasks.text_to_image.named_paths import PICKLES

# how the keys of VAEs and text encoders begin
_OTHER_PARTS = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")


def check_checkpoint(name: str, allow_pickle: bool) -> None:
    """Refuse files that may execute what they like, unless the user allowed it.

    Raises:
        ConfigError: If the file is such a one, or needs a package that isn't installed.
    """
    if name.lower().endswith(PICKLES) and not allow_pickle:
        raise ConfigError(
            f"model_name={name!r} is a pickle, a kind of file that can execute any code when it is "
            "loaded; choose the .safetensors file of this model, or set allow_pickle=true if you "
            "trust where it comes from"
        )
    if name.lower().endswith(".gguf"):
        try:
            import gguf  # noqa: F401
        except ImportError as e:
            raise ConfigError("a .gguf file needs the package gguf: pip install gguf") from e


def usual_base_model(file: Path) -> str:
    """Return the name on the Hub of the model that a checkpoint file is a version of.

    Raises:
        ConfigError: If the file is damaged.
    """
    with quiet_logging():
        from diffusers.loaders.single_file_utils import (
            fetch_diffusers_config,
            load_single_file_checkpoint,
        )

    try:
        found = fetch_diffusers_config(load_single_file_checkpoint(str(file)))
    except Exception as e:
        raise _unreadable(file, e) from e
    return str(found["pretrained_model_name_or_path"])


def check_single_file(traits: PipelineTraits, file: Path) -> None:
    """Check that diffusers can load a pipeline, or its network, from one file.

    Raises:
        ConfigError: If it can't.
    """
    part, network = _network(traits)
    is_network_only = _is_network_only(file)
    loader = network if is_network_only else traits.pipeline_class
    if not hasattr(loader, "from_single_file"):
        what = f"the {part}" if is_network_only else "a pipeline"
        raise ConfigError(
            f"model_name: diffusers can't load {what} of a {traits.name} from one file "
            f"({file.name}); use a folder in diffusers' format"
        )


def load_checkpoint(
    file: Path,
    traits: PipelineTraits,
    folder: Path,
    dtype: torch.dtype,
    fetch_part: Callable[[str], None],
) -> Any:
    """Load a pipeline from a checkpoint file; what the file lacks comes from the base model.

    Args:
        file: The checkpoint.
        traits: What the configs of the base model say.
        folder: The base model.
        dtype: Number format to compute in.
        fetch_part: Downloads a part of the base model, or says that there is none.

    Raises:
        ConfigError: If the file and the base model don't fit together.
    """
    with quiet_logging():
        from diffusers.loaders.single_file_utils import SingleFileComponentError

    if _is_network_only(file):
        network, _ = _network(traits)
        for part in traits.index:
            is_model = (folder / part / "config.json").is_file() and "tokenizer" not in part
            if is_model and part != network and not _has_weights(folder / part):
                fetch_part(part)
    parts: dict[str, Any] = {}
    while True:
        try:
            with quiet_progress_bars(), quiet_logging():
                pipeline = _load(file, traits, folder, dtype, parts)
            break
        except SingleFileComponentError as e:
            named = re.search(r"^(\w+) = ", str(e), re.MULTILINE)
            part = named[1] if named else ""
            if not part or part in parts:
                raise _misfit(file, folder, e) from e
            if not _has_weights(folder / part):
                fetch_part(part)
            library, name = traits.index[part]
            part_class = getattr(importlib.import_module(library), name)
            parts[part] = part_class.from_pretrained(folder, subfolder=part, dtype=dtype)
        except ConfigError:
            raise
        except NotImplementedError as e:  # a weight that the file doesn't have can't be moved
            raise ConfigError(f"model_name: {file} lacks weights; it is not whole") from e
        except Exception as e:
            is_damaged = "Unable to load weights from checkpoint file" in str(e)
            raise (_unreadable(file, e) if is_damaged else _misfit(file, folder, e)) from e
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module) and any(p.is_meta for p in module.parameters()):
            raise ConfigError(f"model_name: {file} lacks weights of the {part}; it is not whole")
    return pipeline


def _load(
    file: Path,
    traits: PipelineTraits,
    folder: Path,
    dtype: torch.dtype,
    parts: Mapping[str, Any],
) -> Any:
    part, network = _network(traits)
    if not _is_network_only(file):
        return traits.pipeline_class.from_single_file(
            str(file), config=str(folder), dtype=dtype, local_files_only=True, **parts
        )
    options: dict[str, Any] = {}
    if file.suffix.lower() == ".gguf":
        from diffusers import GGUFQuantizationConfig

        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    module = network.from_single_file(
        str(file), config=str(folder), subfolder=part, dtype=dtype, **options
    )
    return traits.pipeline_class.from_pretrained(folder, dtype=dtype, **{part: module})


def _is_network_only(file: Path) -> bool:
    """Return whether a file holds no VAE and no text encoder, as of most transformers."""
    if file.suffix.lower() == ".gguf":
        return True
    if file.suffix.lower() != ".safetensors":
        return False
    try:
        with safe_open(file, framework="pt") as tensors:
            return not any(key.startswith(_OTHER_PARTS) for key in tensors.keys())  # noqa: SIM118
    except SafetensorError as e:
        raise _unreadable(file, e) from e


def _has_weights(folder: Path) -> bool:
    return any(file.suffix in (".safetensors", ".bin") for file in folder.iterdir())


def _network(traits: PipelineTraits) -> tuple[str, Any]:
    """Return the name and the class of the denoising network."""
    part = next((name for name in NETWORKS if name in traits.index), "")
    return part, traits.component_class(part)


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"model_name={str(file)!r} can't be read as a checkpoint file: {_describe(error)}; "
        "if it is damaged, download it again"
    )


def _misfit(file: Path, folder: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"model_name: the checkpoint file {file} can't be loaded with the configs of {folder}: "
        f"{_describe(error)}; set base_model to the model that it is a version of"
    )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {shorten(error)}"
