"""Whether a template can fork is found out by itself, and runs compute in either case."""

from __future__ import annotations

from pathlib import Path

import pytest

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.execution.worker import forking

FORKED, NEW = "worker.template", "worker.child"
MODULES = {
    "plain": ("", FORKED),
    "numpy": ("import numpy\nnumpy.ones((300, 300)) @ numpy.ones((300, 300))", FORKED),
    "thread": (
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()",
        NEW,
    ),
    "torch": ("import torch", FORKED),
    "torch that computes": ("import torch\ntorch.ones(999, 999) @ torch.ones(999, 999)", NEW),
    "torch that asks for a GPU": ("import torch\ntorch.cuda.is_available()", FORKED),
}
RUN = """
def run():
    import sys
    {compute}
    return str(sys.orig_argv)
"""


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if "torch" in k else k for k in MODULES]
)
def test_a_run_computes_whatever_its_module_has_done(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # one thread starts no pool
    at_import, started_by = MODULES[kind]
    library = "torch" if "torch" in kind else "numpy"
    pytest.importorskip(library)
    if kind == "torch that asks for a GPU" and Path("/dev/nvidiactl").exists():
        started_by = NEW
    compute = f"import {library} as m; m.ones((500, 500)) @ m.ones((500, 500))"
    file = tmp_path / "computes.py"
    file.write_text(at_import + RUN.format(compute=compute))
    with LocalBackend() as backend:
        results = [run_experiment(f"{file}:run", backend=backend, timeout_s=50) for _ in range(2)]
    for result in results:
        assert started_by in result.raise_for_error().results


def test_a_process_with_an_open_gpu_is_not_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "nvidia0"
    device.touch()
    monkeypatch.setattr(forking, "_GPU_DEVICES", (str(tmp_path / "nvidia"),))
    with device.open():
        assert forking.why_not_to_fork() == "a GPU is initialised"
