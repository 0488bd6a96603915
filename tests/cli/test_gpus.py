"""`ml-experiments gpus`."""

from __future__ import annotations

import json

from click.testing import CliRunner

from ml_experiments.backends.modal.gpus import CATALOGUE
from ml_experiments.backends.modal.preflight.packages import read_lock
from ml_experiments.cli.main import cli


def output_of(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["gpus", *arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_the_table_has_every_type_with_memory_price_and_purpose() -> None:
    text = output_of()
    for gpu in CATALOGUE:
        assert gpu.key in text
        assert f"{gpu.memory_gb} GB" in text
    assert "3.95" in text
    assert "good balance" in text
    assert "prices" in text


def test_json_has_the_same_for_programs() -> None:
    rows = json.loads(output_of("--json"))
    assert [row["gpu_type"] for row in rows] == [gpu.key for gpu in CATALOGUE]
    [default] = [row for row in rows if row["default"]]
    assert default["gpu_type"] == "a10g"
    assert default["modal"] == "A10"
    assert default["usd_per_hour"] == 1.10
    assert default["max_count"] == 4


def test_the_image_is_printed_with_packages_and_environment() -> None:
    text = output_of("--image")
    assert f"torch=={read_lock()['torch']}" in text
    assert "HF_HOME=/cache/huggingface" in text
    image = json.loads(output_of("--image", "--json"))
    assert image["packages"] == read_lock()
    assert image["python"] == "3.11"
    assert image["toolkit_base"].startswith("nvidia/cuda:")
