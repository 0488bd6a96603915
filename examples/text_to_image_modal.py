"""Draw pictures on a Modal GPU.

    python examples/text_to_image_modal.py --prompt "a red seven" --num-images 4
    modal run examples/text_to_image_modal.py --prompt "a red seven" --num-images 4

`tiny-digits` comes with ml_experiments and draws handwritten digits. For a large model:

    python examples/text_to_image_modal.py --gpu-type l40s \\
        --model-name stabilityai/stable-diffusion-xl-base-1.0 --prompt "a sunset over mountains"
"""

import argparse
import sys
from pathlib import Path

import modal

from ml_experiments import Error
from ml_experiments.core.modal_runner import run_experiment_local

app = modal.App("text-to-image")


@app.local_entrypoint()
def main(
    prompt: str = "a red handwritten seven",
    num_images: int = 4,
    model_name: str = "tiny-digits",
    gpu_type: str = "a10g",
    timeout: int = 3600,
) -> None:
    try:
        result = run_experiment_local(
            experiment_config={
                "model_name": model_name,
                "prompt": prompt,
                "num_images": num_images,
            },
            experiment_class_path="ml_experiments.tasks.text_to_image.TextToImageExperiment",
            gpu_type=gpu_type,
            timeout=timeout,
        )
    except Error as e:  # such as a GPU type that does not exist, or no token
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    if result["error"]:
        error = result["error"]
        sys.exit(f"{error['type']}: {error['message']}\n{error['hint']}")
    for artifact in result["artifacts"]:
        print(Path(result["run_dir"]) / artifact["path"])
    print(f"{result['timings']['total_s']:.1f} s, about ${result['cost']['estimate_usd']:.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompt", default="a red handwritten seven")
    parser.add_argument("--num-images", type=int, default=4)
    parser.add_argument("--model-name", default="tiny-digits")
    parser.add_argument("--gpu-type", default="a10g")
    parser.add_argument("--timeout", type=int, default=3600, help="seconds")
    main(**vars(parser.parse_args()))
