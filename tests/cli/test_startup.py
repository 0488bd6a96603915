"""What each command imports: as little as it needs, for that is most of its time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = {"huggingface_hub.hf_api", "httpx", "httpx2", "modal", "grpclib"}
NETWORK = {*CLIENTS, "asyncio", "ssl"}
NUMBERS = {"torch", "numpy", "pandas", "diffusers", "transformers"}
OF_A_RUN = {"pydantic", "ml_experiments.execution.supervisor"}
DISPLAY = {"rich.console", "rich.table", "tqdm"}
CODE = """
import json, sys
from ml_experiments.cli.main import main
try:
    main(sys.argv[1:])
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def loaded_by(*arguments: str, folder: Path) -> set[str]:
    without_token = {k: v for k, v in os.environ.items() if not k.startswith("MODAL_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env={**without_token, "MODAL_CONFIG_PATH": str(folder / "modal.toml")},
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    ("command", "heavy"),
    [
        (["--help"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["run", "--help"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["runs", "list"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["runs", "show", "last"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["gpus"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["cache", "list", "--local"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["cache", "stats"], NETWORK | NUMBERS | OF_A_RUN | DISPLAY),
        (["run", "job.job"], CLIENTS | NUMBERS | DISPLAY),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_nothing_heavy_that_it_does_not_need(
    tmp_path: Path, runs_dir: Path, command: list[str], heavy: set[str]
) -> None:
    (tmp_path / "job.py").write_text("def job(config): return 1\n")
    if command[:2] == ["runs", "show"]:
        loaded_by("run", "job.job", folder=tmp_path)
    assert loaded_by(*command, folder=tmp_path) & heavy == set()
