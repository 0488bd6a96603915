"""Run the same experiment on several GPU types: images per second, seconds, cost per image.

    python examples/benchmark_modal.py --gpu-types t4,l4,a10g,a100
    modal run examples/benchmark_modal.py --gpu-types t4,l4,a10g,a100

Prints a table and writes it as benchmark.csv, with a plot, benchmark.png, for which this machine
needs matplotlib.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

import modal
from matplotlib.figure import Figure

from ml_experiments import Error, ModalBackend, RunResult, prepare_run, submit_run

EXPERIMENT = "ml_experiments.tasks.text_to_image.TextToImageExperiment"
COLUMNS = ("gpu_type", "images_per_s", "seconds", "usd_per_image", "error")

app = modal.App("benchmark-gpus")


@app.local_entrypoint()
def main(
    gpu_types: str = "t4,l4,a10g,a100",
    model_name: str = "tiny-digits",
    prompt: str = "a red handwritten seven",
    num_images: int = 32,
    output_dir: str = ".",
) -> None:
    config = {"model_name": model_name, "prompt": prompt, "num_images": num_images}
    try:
        with ModalBackend() as backend:
            # every mistake shows here, before anything is paid for
            prepared = {
                gpu: prepare_run(
                    EXPERIMENT, config, backend=backend, gpu=gpu, timeout_s=3600, seed=0
                )
                for gpu in gpu_types.split(",")
            }
            # then all at once: each GPU type has containers of its own
            handles = {gpu: submit_run(run, backend=backend) for gpu, run in prepared.items()}
            rows = [row_of(gpu, handle.result(), num_images) for gpu, handle in handles.items()]
    except Error as e:  # such as a GPU type that does not exist, or no token
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    print_table(rows)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "benchmark.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    plot(rows, folder / "benchmark.png")
    print(f"written: {folder / 'benchmark.csv'}, {folder / 'benchmark.png'}")
    if any(row["error"] for row in rows):
        sys.exit(1)


def row_of(gpu: str, result: RunResult, num_images: int) -> dict[str, Any]:
    """Return what one GPU type achieved; the seconds include loading the model."""
    if result.error is not None:
        return {"gpu_type": gpu, "error": f"{result.error.type}: {result.error.message}"}
    return {
        "gpu_type": gpu,
        "images_per_s": num_images / result.timings["run_s"],
        "seconds": result.timings["total_s"],
        "usd_per_image": result.cost["estimate_usd"] / num_images,
        "error": "",
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'GPU type':<14}{'images/s':>10}{'seconds':>10}{'$/image':>12}")
    for row in rows:
        if row["error"]:
            print(f"{row['gpu_type']:<14}{row['error']}")
        else:
            print(
                f"{row['gpu_type']:<14}{row['images_per_s']:>10.2f}{row['seconds']:>10.1f}"
                f"{row['usd_per_image']:>12.6f}"
            )


def plot(rows: list[dict[str, Any]], file: Path) -> None:
    """Draw speed against cost: the best are at the upper left."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if not row["error"]:
            axes.plot(row["usd_per_image"], row["images_per_s"], "o")
            axes.annotate(
                row["gpu_type"],
                (row["usd_per_image"], row["images_per_s"]),
                textcoords="offset points",
                xytext=(0, 6),
                ha="center",
            )
    axes.margins(0.2)  # room for the names
    axes.set(xlabel="US dollars per image", ylabel="images per second")
    axes.set(xlim=(0, None), ylim=(0, None))
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-types", default="t4,l4,a10g,a100", help="separated by commas")
    parser.add_argument("--model-name", default="tiny-digits")
    parser.add_argument("--prompt", default="a red handwritten seven")
    parser.add_argument("--num-images", type=int, default=32)
    parser.add_argument("--output-dir", default=".")
    main(**vars(parser.parse_args()))
