"""A model that is one file, with what it lacks from a base model in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")
import torch
from safetensors.torch import save_file

from ml_experiments.tasks.text_to_image.config import TextToImageConfig
from ml_experiments.tasks.text_to_image.model.loading import load_pipeline
from tests.support import tiny_pipelines

pytestmark = pytest.mark.slow

# as the original checkpoint names what diffusers renames
ORIGINAL_NAMES = {
    "all_final_layer.2-1.": "final_layer.",
    "all_x_embedder.2-1.": "x_embedder.",
    ".attention.to_out.0.": ".attention.out.",
    ".attention.norm_k.": ".attention.k_norm.",
    ".attention.norm_q.": ".attention.q_norm.",
}


def test_a_file_of_a_transformer_is_loaded_with_the_rest_of_a_base_model(tmp_path: Path) -> None:
    pipeline = tiny_pipelines.build("ZImagePipeline")
    pipeline.save_pretrained(tmp_path / "base")
    expected = pipeline.transformer.state_dict()
    weights = {}
    for name, weight in expected.items():
        for ours, original in ORIGINAL_NAMES.items():
            name = name.replace(ours, original)
        weights[f"model.diffusion_model.{name}"] = weight.contiguous()
    save_file(weights, tmp_path / "z.safetensors")
    config = TextToImageConfig(
        prompt="a", model_name=str(tmp_path / "z.safetensors"), base_model=str(tmp_path / "base")
    )
    loaded = load_pipeline(config, "cpu").pipeline.transformer.state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in expected.items())
