"""`ml-experiments gpus`."""

from __future__ import annotations

import json
from typing import Any

import click


@click.command()
@click.option("--image", is_flag=True, help="Print what the GPU image holds instead.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gpus(image: bool, as_json: bool) -> None:
    """List the GPU types of Modal with memory, price and purpose.

    Several of one: h100:8. Not to be upgraded: h100!. Alternatives, the best first:
    h100,a100-80gb.
    """
    if image:
        description = _describe_image()
        click.echo(json.dumps(description)) if as_json else _print_image(description)
        return
    rows = _rows()
    click.echo(json.dumps(rows)) if as_json else _print_table(rows)


def _rows() -> list[dict[str, Any]]:
    from ml_experiments.backends.modal.billing.prices import current_prices
    from ml_experiments.backends.modal.billing.rates import refresh_rates
    from ml_experiments.backends.modal.gpus import CATALOGUE, DEFAULT_GPU_TYPE

    refresh_rates()
    prices = current_prices()
    return [
        {
            "gpu_type": gpu.key,
            "aliases": list(gpu.aliases),
            "modal": gpu.modal,
            "memory_gb": gpu.memory_gb,
            "usd_per_s": prices.gpus[gpu.key],
            "usd_per_hour": round(prices.gpus[gpu.key] * 3600, 2),
            "max_count": gpu.max_count,
            "purpose": gpu.purpose,
            "default": gpu.key == DEFAULT_GPU_TYPE,
            "prices_checked": prices.date,
            "prices_source": prices.source,
        }
        for gpu in CATALOGUE
    ]


def _print_table(rows: list[dict[str, Any]]) -> None:
    from ml_experiments.cli.table import Column, print_table

    numbers = (Column(name, is_right=True) for name in ("memory", "$/hour", "up to"))
    print_table(
        (Column("GPU type"), *numbers, Column("purpose", is_cut=True)),
        [
            (
                " ".join([row["gpu_type"], *(f"({alias})" for alias in row["aliases"])]),
                f"{row['memory_gb']} GB",
                f"{row['usd_per_hour']:.2f}",
                str(row["max_count"]),
                row["purpose"],
            )
            for row in rows
        ],
    )
    click.echo(
        f"GPU prices of {rows[0]['prices_checked']}, from {rows[0]['prices_source']}; CPU and "
        "memory come on top, by use"
    )


def _describe_image() -> dict[str, Any]:
    from ml_experiments.backends.modal.image import APT_PACKAGES, TOOLKIT_BASE
    from ml_experiments.backends.modal.mounts import ENVIRONMENT
    from ml_experiments.backends.modal.preflight.imports import CONTAINER_PYTHON
    from ml_experiments.backends.modal.preflight.packages import read_lock

    return {
        "python": ".".join(map(str, CONTAINER_PYTHON)),
        "toolkit_base": TOOLKIT_BASE,
        "apt": list(APT_PACKAGES),
        "environment": ENVIRONMENT,
        "packages": read_lock(),
    }


def _print_image(image: dict[str, Any]) -> None:
    click.echo(f"Python {image['python']} on Debian; apt: {' '.join(image['apt'])}")
    click.echo(f"with --cuda-toolkit on {image['toolkit_base']}, which has nvcc")
    click.echo("\nenvironment")
    for name, value in image["environment"].items():
        click.echo(f"  {name}={value}")
    click.echo("\npackages")
    for name, version in image["packages"].items():
        click.echo(f"  {name}=={version}")
