"""From a model's name to its files: packaged, local, or downloaded from the Hub."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.constants import ENDPOINT

from ml_experiments.errors import BackendError, CacheError, ConfigError
from ml_experiments.tasks.text_to_image.model.checkpoint_file import (
    check_checkpoint,
    usual_base_model,
)
from ml_experiments.tasks.text_to_image.model.download_errors import explained_download
from ml_experiments.tasks.text_to_image.model.pipeline_class import (
    PIPELINE_FILE,
    PipelineTraits,
    read_traits,
)
from ml_experiments.tasks.text_to_image.model.quiet import quiet_progress_bars
from ml_experiments.tasks.text_to_image.named_paths import (
    ADAPTER_SLASHES,
    CHECKPOINT_SUFFIXES,
    MODEL_SLASHES,
    TINY_DIGITS,
    absolute_path,
    exists,
    is_path,
)
from ml_experiments.tasks.tiny_digits import RECOMMENDED_SETTINGS, model_dir

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.config import TextToImageConfig

# and tokenizers
_CONFIGS = [PIPELINE_FILE, "*/*.json", "*/*.txt", "*/*.model"]
_WEIGHTS = (".safetensors", ".bin")
_MAX_NAMED = 5


@dataclass(frozen=True)
class ModelFiles:
    """Where a model's files are on this machine.

    Attributes:
        folder: Its configs, and its weights once `fetch_weights` has returned it.
        traits: What its configs say.
        hub_name: Its name on the Hub; None for a folder of this machine.
        commit: The commit on the Hub that they are from.
        checkpoint: The file that has the weights, for which `folder` is the base model.
        variant: Of the weights, as their files are named.
        recommended: Settings to draw with where a config leaves them open.
    """

    folder: Path
    traits: PipelineTraits
    hub_name: str | None = None
    commit: str | None = None
    checkpoint: Path | None = None
    variant: str | None = None
    recommended: Mapping[str, Any] = field(default_factory=dict)


def fetch_configs(config: TextToImageConfig) -> ModelFiles:
    """Return a model's configs, downloading what isn't in the cache; no weights but a file's.

    Raises:
        ConfigError: If there is no such model, revision or variant, or it can't draw from text.
        AuthError: If the model is gated.
        CacheError: If the download failed: no network, no space.
    """
    name, revision, variant = config.model_name, config.revision, config.variant
    if name == TINY_DIGITS:
        folder = model_dir()
        return ModelFiles(folder, read_traits(folder), recommended=RECOMMENDED_SETTINGS)
    is_checkpoint = name.lower().endswith(CHECKPOINT_SUFFIXES)
    path = _local_path(name, "model_name", MODEL_SLASHES)
    if is_checkpoint and (path is None or path.is_file()):
        return _files_of_checkpoint(config, path)
    if config.base_model is not None:
        raise ConfigError(
            f"base_model: {name} has configs of its own; leave base_model out, which is for a "
            f"checkpoint file ({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    if path is not None:
        if revision is not None:
            raise ConfigError(
                f"revision={revision!r} has no meaning for {path}, a folder of this machine; "
                "leave revision out, or give the model's name on the Hub"
            )
        return _local_files(path, "model_name", name, variant)
    folder = _download_configs("model_name", name, revision)
    return ModelFiles(folder, read_traits(folder), name, folder.name, variant=variant)


def fetch_weights(files: ModelFiles, revision: str | None) -> Path:
    """Return the folder of a model with its weights, downloading what isn't in the cache.

    Raises:
        ConfigError: If it has no weights of that variant.
        AuthError: If the model is gated.
        CacheError: If the download failed: no network, no space.
    """
    if files.hub_name is None or files.checkpoint is not None:
        return files.folder
    pipeline_class = files.traits.pipeline_class
    with explained_download("model_name", files.hub_name, revision, files.variant):
        folder = pipeline_class.download(files.hub_name, revision=revision, variant=files.variant)
    return Path(folder)


def fetch_part(files: ModelFiles, part: str) -> None:
    """Download a part of the base model, such as `text_encoder`, that a checkpoint file lacks.

    Raises:
        ConfigError: If the base model is a folder, which doesn't have it either.
    """
    if files.hub_name is None:
        raise ConfigError(
            f"model_name: {files.checkpoint} has no {part}, and neither has base_model, "
            f"{files.folder}; choose a base_model that has it"
        )
    with explained_download("base_model", files.hub_name):
        snapshot_download(files.hub_name, allow_patterns=[f"{part}/*"])


def _files_of_checkpoint(config: TextToImageConfig, path: Path | None) -> ModelFiles:
    """Return the files of a model that is one file: its base model has what it lacks."""
    for name in ("revision", "variant"):
        if path is not None and getattr(config, name) is not None:
            raise ConfigError(
                f"{name}={getattr(config, name)!r} has no meaning for {path}, a checkpoint file; "
                f"leave {name} out"
            )
    check_checkpoint(config.model_name, config.allow_pickle)
    if path is None:
        path = _download_checkpoint(config.model_name, config.revision)
    base = config.base_model or usual_base_model(path)
    if base == TINY_DIGITS:
        base = str(model_dir())
    local = _local_path(base, "base_model", MODEL_SLASHES)
    if local is not None:
        traits = _local_files(local, "base_model", base, None, is_base=True).traits
        return ModelFiles(local, traits, checkpoint=path)
    try:
        folder = _download_configs("base_model", base, None)
    except (BackendError, CacheError) as e:
        raise type(e)(
            f"the checkpoint file {path.name} has no configs and needs those of its base model; "
            f"set base_model to a folder that holds it, or see why the download failed: {e}"
        ) from e
    return ModelFiles(folder, read_traits(folder), base, folder.name, checkpoint=path)


def _local_files(
    path: Path, field_name: str, name: str, variant: str | None, *, is_base: bool = False
) -> ModelFiles:
    if not (path / PIPELINE_FILE).is_file():
        raise ConfigError(
            f"{field_name}={name!r} is not a diffusers pipeline: {path} has no "
            f"{PIPELINE_FILE}; save the model there with pipeline.save_pretrained(folder), or "
            f"name a checkpoint file ({', '.join(CHECKPOINT_SUFFIXES)})"
        )
    traits = read_traits(path)
    if not is_base:
        check_parts(path, traits)
        if variant is not None and variant not in _variants(path, traits):
            raise ConfigError(
                f"variant={variant!r}: {path} has no weights of that variant; leave variant out"
            )
        variant = variant or only_variant(path, traits)
    return ModelFiles(path, traits, variant=variant)


def check_parts(folder: Path, traits: PipelineTraits) -> None:
    """Check that a folder holds all that its model_index.json lists.

    Raises:
        ConfigError: If a part is missing; it names it.
    """
    missing = [part for part in _parts(traits) if not any((folder / part).glob("*"))]
    if missing:
        raise ConfigError(
            f"{folder} has no {', '.join(missing)}, which its {PIPELINE_FILE} lists; copy the "
            "folder from where the model comes from, or save the model anew with "
            "pipeline.save_pretrained(folder)"
        )


def only_variant(folder: Path, traits: PipelineTraits) -> str | None:
    """Return the variant of a model's weights if parts have only files of that one."""
    variants: set[str] = set()
    for found in map(partial(_variants_of_part, folder), _parts(traits)):
        if None not in found:
            variants |= {variant for variant in found if variant is not None}
    return variants.pop() if len(variants) == 1 else None


def _variants(folder: Path, traits: PipelineTraits) -> set[str | None]:
    return set().union(*(_variants_of_part(folder, part) for part in _parts(traits)))


def _variants_of_part(folder: Path, part: str) -> set[str | None]:
    return {_variant_of(f.name) for f in (folder / part).iterdir() if f.suffix in _WEIGHTS}


def _variant_of(name: str) -> str | None:
    """Return `fp16` for model.fp16.safetensors and model.fp16-00001-of-00002.safetensors."""
    middle = name.split(".")[1:-1]
    return middle[0].partition("-0")[0] if middle else None


def _parts(traits: PipelineTraits) -> Iterator[str]:
    for part, named in traits.index.items():
        if isinstance(named, list) and len(named) == 2 and named[0] is not None:
            yield part


def fetch_adapter(name: str, field_name: str = "lora") -> Path:
    """Return the .safetensors file of a LoRA or the like, downloading what isn't in the cache.

    Args:
        name: A file, a folder with one .safetensors file, `org/name`, or `org/name/file`.
        field_name: What messages call it.

    Raises:
        ConfigError: If there is no such file, or its folder doesn't say which one is meant.
        AuthError: If it is gated.
        CacheError: If the download failed.
    """
    path = _local_path(name, field_name, ADAPTER_SLASHES)
    if path is None:
        path = _download_adapter(name, field_name)
    if path.is_file():
        if path.suffix.lower() != ".safetensors":
            raise ConfigError(
                f"{field_name}={name!r} is no .safetensors file; others can execute any code when "
                "they are loaded: convert it, or choose the .safetensors file of it"
            )
        return path
    found = sorted(itertools.islice(path.rglob("*.safetensors"), _MAX_NAMED + 1))
    if len(found) != 1:
        names = ", ".join(p.relative_to(path).as_posix() for p in found[:_MAX_NAMED])
        names += ", …" if len(found) > _MAX_NAMED else ""
        if not found:
            raise ConfigError(f"{field_name}={name!r}: it has no .safetensors file; choose another")
        raise ConfigError(
            f"{field_name}={name!r}: it has {names}: name one, as in "
            f"{name.rstrip('/')}/FILE.safetensors"
        )
    return found[0]


def _local_path(name: str, field: str, max_slashes: int) -> Path | None:
    """Return the path that a name stands for, or None if it is a name on the Hub."""
    path = absolute_path(name)
    if exists(path):
        return path.resolve()
    if is_path(name, max_slashes):
        is_file = name.lower().endswith(CHECKPOINT_SUFFIXES)
        on_hub = "org/name/FILE" if is_file else "org/name"
        advice = f"check the path, or give a name on the Hub: {on_hub}"
        if "MODAL_TASK_ID" in os.environ:
            advice = (
                "a container on Modal has no file of your machine: put it on the volume, as with "
                "`modal volume put hf-model-cache FILE /models/FILE`, and give /cache/models/FILE, "
                f"or give a name on the Hub: {on_hub}"
            )
        raise ConfigError(
            f"{field}={name!r}: nothing is there on this machine (current folder: {Path.cwd()}); "
            f"{advice}"
        )
    return None


def _download_adapter(name: str, field_name: str) -> Path:
    parts = name.split("/")  # org/name, name, or org/name/file
    repo, file = "/".join(parts[:2]), "/".join(parts[2:])
    with explained_download(field_name, repo):
        patterns = [file or "*.safetensors", "*adapter_config.json"]  # of peft
        folder = Path(snapshot_download(repo, allow_patterns=patterns))
    if (folder / file).exists():
        return folder / file
    raise ConfigError(
        f"{field_name}={name!r}: {repo} on the Hub has no file {file!r}; its files: "
        f"{ENDPOINT}/{repo}/tree/main"
    )


def _download_configs(field_name: str, name: str, revision: str | None) -> Path:
    """Download a model's small files, by which mistakes are found before gigabytes follow."""
    with explained_download(field_name, name, revision), quiet_progress_bars():
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_CONFIGS))
    if not (folder / PIPELINE_FILE).is_file():
        raise ConfigError(
            f"{field_name}={name!r} is not a diffusers pipeline: that repository has no "
            f"{PIPELINE_FILE}; choose one that {ENDPOINT}/models?library=diffusers lists"
        )
    return folder


def _download_checkpoint(name: str, revision: str | None) -> Path:
    repo, file = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    with explained_download("model_name", repo, revision):
        return Path(hf_hub_download(repo, file, revision=revision))
