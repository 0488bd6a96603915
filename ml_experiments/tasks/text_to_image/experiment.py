"""Draws pictures from prompts with any text-to-image model of the diffusers library."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ml_experiments.errors import ConfigError, SoftTimeout
from ml_experiments.experiment.base import Experiment
from ml_experiments.experiment.context import current_run
from ml_experiments.tasks.text_to_image.config import TextToImageConfig
from ml_experiments.tasks.text_to_image.named_paths import (
    ADAPTER_SLASHES,
    MODEL_SLASHES,
    TINY_DIGITS,
    absolute_path,
    is_path,
)
from ml_experiments.tasks.text_to_image.pictures.file_names import file_names

if TYPE_CHECKING:
    from ml_experiments.tasks.text_to_image.batch_log import BatchLog
    from ml_experiments.tasks.text_to_image.batches import Batch, Drawn
    from ml_experiments.tasks.text_to_image.drawing import Drawer
    from ml_experiments.tasks.text_to_image.model.loading import FoundModel, LoadedPipeline
    from ml_experiments.tasks.text_to_image.pictures.gallery import Gallery
    from ml_experiments.tasks.text_to_image.requests import DrawingSettings, PictureRequest

logger = logging.getLogger(__name__)

_MIN_TO_GIVE_UP = 8  # black pictures, and no other


class TextToImageExperiment(Experiment[TextToImageConfig]):
    """Draws `num_images` pictures of each prompt.

    Picture i of a prompt depends on the seed, the prompt and i only: not on the batch size, on
    the other prompts and their order, or on the machine, but for the rounding of its arithmetic.
    A run that is resumed keeps the pictures that it has drawn before.
    """

    @classmethod
    def hub_models(cls, config: TextToImageConfig) -> list[str]:
        """Return the model that `setup()` would download, and what it would read here."""
        named = (config.model_name, config.base_model)
        models = [name for name in named if name not in (None, TINY_DIGITS)]
        adapters = [lora.path for lora in config.loras]
        adapters += [inversion.path for inversion in config.textual_inversions]
        paths = [
            *(name for name in models if is_path(name, MODEL_SLASHES)),
            *(name for name in adapters if is_path(name, ADAPTER_SLASHES)),
        ]
        name = config.base_model or config.model_name
        found = [str(absolute_path(path)) for path in paths]
        if name == TINY_DIGITS or name in paths or name.count("/") != 1:
            return found
        revision = config.revision if name == config.model_name else None
        return [f"{name}@{revision}" if revision else name, *found]

    setup_fields: ClassVar[tuple[str, ...]] = (
        "model_name",
        "base_model",
        "allow_pickle",
        "revision",
        "variant",
        "dtype",
        "device",
        "quantization",
        "cpu_offload",
        "compile",
        "first_block_cache",
        "attention_backend",
        "channels_last",
        "loras",
        "fuse_loras",
        "textual_inversions",
    )

    preload: ClassVar[tuple[str, ...]] = (
        "ml_experiments.tasks.text_to_image.drawing",
        "ml_experiments.tasks.text_to_image.pictures.gallery",
    )

    _found: FoundModel | None = None  # by the check, for the set-up
    _loaded: LoadedPipeline
    _load_seconds: float

    def check_setup(self) -> None:
        """Find the model and what is added to it, and check that every option has an effect."""
        from ml_experiments.tasks.text_to_image.model.loading import find_model

        self._found = find_model(self.config, self._device_name)

    def setup(self) -> None:
        """Load the model, downloading what isn't in the cache."""
        started = time.perf_counter()
        current_run().progress(0, None, text=f"loading {self.config.model_name}")
        from ml_experiments.tasks.text_to_image.model.loading import find_model, load_pipeline

        found = self._found or find_model(self.config, self._device_name)
        self._loaded = load_pipeline(self.config, found)
        self._load_seconds = time.perf_counter() - started

    def run(self) -> dict[str, Any]:
        """Draw the pictures; at the soft timeout, those that are drawn are kept and returned."""
        from ml_experiments.tasks.text_to_image.batch_log import BatchLog
        from ml_experiments.tasks.text_to_image.batches import BatchSize, draw_in_batches
        from ml_experiments.tasks.text_to_image.requests import plan_pictures

        config, run = self.config, current_run()
        seed = run.seed if config.seed is None else config.seed
        drawer = self._prepare_drawer()
        requests = plan_pictures(config.rows, seed, self._loaded.files.recommended)
        used = self._describe(requests, drawer)
        size = BatchSize.choose(config.batch_size, self._loaded.device.type)
        sizes = {r.settings: drawer.size_of(r.settings) for r in requests}
        with self._open_gallery(requests, used, sizes, seed) as gallery:
            kept = frozenset(gallery.keep(requests))
            log = BatchLog.open(run.checkpoint_dir, [gallery.texts, config.batch_size], size)
            if kept:
                logger.info("%d of %d pictures are there already", len(kept), len(requests))
                run.progress(len(kept), len(requests))

            def draw(chosen: Sequence[PictureRequest], done: int) -> Sequence[Drawn]:
                return drawer.draw(
                    chosen, lambda share: run.progress(done + share * len(chosen), len(requests))
                )

            started = time.perf_counter()
            try:
                for batch in draw_in_batches(
                    draw, requests, size, lambda r: math.prod(sizes[r.settings]), kept
                ):
                    self._record(batch, gallery, log)
            except SoftTimeout:
                if not gallery.records:
                    raise
                logger.warning("the time is nearly up: keeping the pictures drawn so far")
            gallery.wait()
            seconds = time.perf_counter() - started + log.earlier_seconds
            _check_not_all_black(gallery.records)
            contact_sheet = gallery.write_contact_sheet()
        return {
            "images": gallery.records,
            "contact_sheet": contact_sheet,
            **({"kept_images": len(kept)} if kept else {}),
            "images_per_second": len(gallery.records) / seconds if seconds else None,
            "latency_seconds_per_batch": _percentiles(log.seconds),
            "batch_size": size.reported(max(map(math.prod, sizes.values())), len(requests)),
            "batch_sizes_out_of_memory": size.too_large,
            "seed": seed,
            **self._describe_run(gallery, used),
        }

    @property
    def _device_name(self) -> str:
        device = self.config.device
        return current_run().device if device == "auto" else device

    def _prepare_drawer(self) -> Drawer:
        from ml_experiments.tasks.text_to_image.drawing import Drawer, prepare_memory_savers
        from ml_experiments.tasks.text_to_image.long_prompts import PromptEncoder
        from ml_experiments.tasks.text_to_image.model.adapters import check_words
        from ml_experiments.tasks.text_to_image.model.loading import check_run

        config, loaded = self.config, self._loaded
        check_run(config, loaded.files)
        check_words(loaded.embeddings, config)
        prepare_memory_savers(loaded, config)
        encoder = PromptEncoder(loaded.pipeline) if config.long_prompt else None
        return Drawer(loaded, encoder)

    def _describe(
        self, requests: Sequence[PictureRequest], drawer: Drawer
    ) -> Sequence[Mapping[str, Any]]:
        """Return the settings that had an effect on each picture."""
        known: dict[Any, dict[str, Any]] = {}
        for request in requests:
            key, settings = (request.prompt, request.settings), request.settings
            if key in known:
                continue
            size = {"height": settings.height, "width": settings.width}
            known[key] = {
                **self._loaded.files.traits.used(settings),
                "scheduler": drawer.scheduler_name(settings),
                **{name: value for name, value in size.items() if value is not None},
            }
            if not self.config.long_prompt and (unread := drawer.unread(request.prompt)):
                known[key]["unread_prompt"] = unread
        return [known[request.prompt, request.settings] for request in requests]

    def _open_gallery(
        self,
        requests: Sequence[PictureRequest],
        used: Sequence[Mapping[str, Any]],
        sizes: Mapping[DrawingSettings, tuple[int, int]],
        seed: int,
    ) -> Gallery:
        from ml_experiments.tasks.text_to_image.pictures.contact_sheet import ContactSheet
        from ml_experiments.tasks.text_to_image.pictures.gallery import Gallery
        from ml_experiments.tasks.text_to_image.pictures.picture_files import (
            DEFAULT_QUALITY,
            EXTENSIONS,
        )

        config, common = self.config, _common(used)
        texts = [
            {
                "prompt": request.prompt,
                "seed": str(request.seed),
                "index": str(request.index),
                **self._model_texts(),
                **{name: str(value) for name, value in own.items() if name != "unread_prompt"},
            }
            for request, own in zip(requests, used, strict=True)
        ]
        names = file_names(
            config.file_name,
            [
                {**vars(r), **own, "model": config.model_name}
                | dict(zip(("height", "width"), sizes[r.settings], strict=True))
                for r, own in zip(requests, used, strict=True)
            ],
            EXTENSIONS[config.image_format],
        )
        sheet = ContactSheet(_title(config.model_name, common, seed), row_length=config.num_images)
        details = [{k: v for k, v in own.items() if k not in common} for own in used]
        return Gallery(
            current_run().output_dir,
            names,
            texts,
            details,
            sheet,
            config.image_format,
            config.image_quality or DEFAULT_QUALITY,
        )

    def _model_texts(self) -> dict[str, str]:
        """Return what every picture says of the model, and of what changes its pixels."""
        config, loaded = self.config, self._loaded
        loras = [f"{lora.path}:{lora.weight:g}" for lora in config.loras]
        inversions = [f"{i.path}:{i.token or ''}" for i in config.textual_inversions]
        changes = {
            "base_model": config.base_model,
            "revision": loaded.files.commit,
            "variant": loaded.files.variant,
            "loras": ", ".join(loras),
            "textual_inversions": ", ".join(inversions),
            "dtype": None if loaded.dtype_name == "float32" else loaded.dtype_name,
            "quantization": config.quantization if config.quantization != "none" else None,
            "first_block_cache": config.first_block_cache,
            "long_prompt": config.long_prompt,
            "vae_tiling": config.vae_tiling,
        }
        return {"model": config.model_name} | {k: str(v) for k, v in changes.items() if v}

    def _record(self, batch: Batch, gallery: Gallery, log: BatchLog) -> None:
        """Log a batch's metrics, once, and start to write its pictures."""
        if not log.has(batch.done):
            rate = len(batch.requests) / batch.seconds
            metrics = {"images_per_second": rate, "batch_seconds": batch.seconds}
            current_run().log(metrics, step=batch.done)
            log.add(batch)
        gallery.add(batch)
        if batch.done >= _MIN_TO_GIVE_UP:
            _check_not_all_black(gallery.records)

    def _describe_run(self, gallery: Gallery, used: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what the results say of the model, the machine and the settings in effect."""
        load_seconds, self._load_seconds = self._load_seconds, 0.0  # a warm run loads nothing
        loaded = self._loaded
        common = _common(used)
        common.pop("unread_prompt", None)
        return {
            **gallery.common_size(),
            "load_seconds": load_seconds,
            "model_name": self.config.model_name,
            "model_revision": loaded.files.commit,
            **({"variant": loaded.files.variant} if loaded.files.variant else {}),
            "device": loaded.device.type,
            "dtype": loaded.dtype_name,
            **common,
            **({"quantized_layers": loaded.quantized_layers} if loaded.quantized_layers else {}),
        }


def _common(used: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings that all pictures share."""
    first, *others = used
    return {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}


def _title(model_name: str, common: Mapping[str, Any], seed: int) -> str:
    """Return the title of the contact sheet: what all pictures have in common."""
    texts = {
        "scheduler": "{}",
        "num_inference_steps": "{} steps",
        "guidance_scale": "guidance {}",
        "true_cfg_scale": "true guidance {}",
    }
    known = [text.format(common[name]) for name, text in texts.items() if name in common]
    return " · ".join([model_name, *known, f"seed {seed}"])


def _check_not_all_black(records: Sequence[Mapping[str, Any]]) -> None:
    """Raise if numbers overflowed in every picture.

    Raises:
        ConfigError: If they did.
    """
    if records and all(record.get("overflowed") for record in records):
        raise ConfigError(
            "every picture is black, because numbers overflowed in the model; try dtype=float32 "
            "or bfloat16, or less guidance"
        )


def _percentiles(seconds: Sequence[float]) -> dict[str, float] | None:
    import numpy as np

    if not seconds:
        return None
    p50, p95 = np.percentile(seconds, [50, 95])
    return {"p50": float(p50), "p95": float(p95)}
