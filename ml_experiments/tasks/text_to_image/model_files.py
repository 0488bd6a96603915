"""From a model's name to a folder of its files: packaged, local, or downloaded from the Hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.constants import ENDPOINT

from ml_experiments.errors import ConfigError
from ml_experiments.tasks.text_to_image.download_errors import explained_download
from ml_experiments.tasks.text_to_image.pipeline_class import PIPELINE_FILE, text_to_image_class
from ml_experiments.tasks.text_to_image.quiet import quiet_progress_bars
from ml_experiments.tasks.tiny_digits import RECOMMENDED_SETTINGS, model_dir

TINY_DIGITS = "tiny-digits"


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are on this machine.

    Attributes:
        commit: The commit on the Hub that they are from; None for a folder of this machine.
        recommended: Settings to draw with where a config leaves them open.
    """

    folder: Path
    pipeline_class: type[Any]
    commit: str | None = None
    recommended: Mapping[str, Any] = field(default_factory=dict)


def fetch_pipeline(model_name: str, revision: str | None, variant: str | None) -> ModelFiles:
    """Return the folder of a diffusers pipeline, downloading what isn't in the cache.

    Raises:
        ConfigError: If there is no such model, revision or variant, or it isn't a pipeline.
        AuthError: If the model is gated.
        CacheError: If the download failed: no network, no space.
    """
    if model_name == TINY_DIGITS:
        folder = model_dir()
        return ModelFiles(folder, text_to_image_class(folder), recommended=RECOMMENDED_SETTINGS)
    path = _local_path(model_name, "model_name", most_slashes=1)
    if path is None:
        return _download_pipeline(model_name, revision, variant)
    if not (path / PIPELINE_FILE).is_file():
        raise ConfigError(
            f"model_name={model_name!r} is not a diffusers pipeline: {path} has no "
            f"{PIPELINE_FILE}; save the model there with pipeline.save_pretrained(folder)"
        )
    if revision is not None:
        raise ConfigError(
            f"revision={revision!r} has no meaning for {path}, a folder of this machine; "
            "leave revision out, or give the model's name on the Hub"
        )
    return ModelFiles(path, text_to_image_class(path))


def fetch_lora(lora: str) -> Path:
    """Return the .safetensors file of a LoRA, downloading it from the Hub if it isn't in the cache.

    Args:
        lora: A file, a folder with one .safetensors file, `org/name`, or `org/name/file`.

    Raises:
        ConfigError: If there is no such LoRA, or its folder doesn't say which file is meant.
        AuthError: If it is gated.
        CacheError: If the download failed.
    """
    path = _local_path(lora, "lora", most_slashes=2)
    if path is None:
        path = _download_lora(lora)
    if path.is_file():
        return path
    found = sorted(path.rglob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(p.relative_to(path).as_posix() for p in found)
        listed = f"it has {names}: name one" if found else "it has no .safetensors file"
        raise ConfigError(f"lora={lora!r}: {listed}, as in {lora.rstrip('/')}/FILE.safetensors")
    return found[0]


def _local_path(name: str, field: str, most_slashes: int) -> Path | None:
    """Return the path that a name stands for, or None if it is a name on the Hub."""
    path = Path(name).expanduser()
    if path.exists():
        return path.resolve()
    if name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name:
        is_path = True
    else:
        is_path = name.count("/") > most_slashes
    if is_path:
        raise ConfigError(
            f"{field}={name!r}: nothing is there on this machine (current folder: {Path.cwd()}); "
            "check the path, or give a name on the Hub: org/name"
        )
    return None


def _download_lora(lora: str) -> Path:
    parts = lora.split("/")  # org/name, name, or org/name/file
    repo, file = "/".join(parts[:2]), "".join(parts[2:])
    with explained_download("lora", repo):
        folder = Path(snapshot_download(repo, allow_patterns=file or "*.safetensors"))
    if (folder / file).exists():
        return folder / file
    raise ConfigError(
        f"lora={lora!r}: {repo} on the Hub has no file {file!r}; its files: "
        f"{ENDPOINT}/{repo}/tree/main"
    )


def _download_pipeline(model_name: str, revision: str | None, variant: str | None) -> ModelFiles:
    with explained_download("model_name", model_name, revision), quiet_progress_bars():
        index = snapshot_download(model_name, revision=revision, allow_patterns=PIPELINE_FILE)
    if not (Path(index) / PIPELINE_FILE).is_file():
        raise ConfigError(
            f"model_name={model_name!r} is not a diffusers pipeline: that repository has no "
            f"{PIPELINE_FILE}; choose one that {ENDPOINT}/models?library=diffusers lists"
        )
    pipeline_class = text_to_image_class(Path(index))  # before gigabytes follow
    with explained_download("model_name", model_name, revision, variant):
        folder = Path(pipeline_class.download(model_name, revision=revision, variant=variant))
    return ModelFiles(folder, pipeline_class, commit=folder.name)
