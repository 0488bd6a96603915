"""Experiments that use models of the cache volume until a test lets them go on."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path

from ml_experiments import Experiment, ExperimentConfig


class Holds(Experiment):
    """Reads models as it goes, keeps no file open, and waits for a file of the Hub."""

    class Config(ExperimentConfig):
        declared: str = ""  # stands for what a subprocess would read
        in_setup: str = ""
        in_run: str = ""
        gate: str

    setup_fields = ("in_setup",)

    @staticmethod
    def hub_models(config: Config) -> list[str]:
        if config.declared == "broken" and "MODAL_TASK_ID" in os.environ:  # else no run starts
            raise ValueError("a mistake of the user's")
        return [f"{config.declared}@main"] if config.declared else []

    def setup(self) -> None:
        if self.config.in_setup:
            read_config(self.config.in_setup)

    def run(self) -> str:
        if self.config.in_run:
            read_config(self.config.in_run)
        print("waiting", flush=True)
        url = f"{os.environ['HF_ENDPOINT']}/org/gates/resolve/main/{self.config.gate}"
        with urllib.request.urlopen(url) as answer:
            return str(answer.read(), "utf-8")


def read_config(name: str) -> str:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "config.json")).read_text()
