"""Values that Modal secrets bring into a container."""

from __future__ import annotations

from ml_experiments.backends.modal.secrets import attached_values


def test_values_of_secrets_are_told_from_the_environment_of_a_container() -> None:
    environment = {
        "PATH": "/usr/bin",
        "MODAL_TASK_ID": "ta-1",
        "HF_HOME": "/cache/huggingface",
        "NVIDIA_VISIBLE_DEVICES": "all",
        "OPENBLAS_NUM_THREADS": "1",
        "DATABASE_URL": "postgres://user:pass@host",
        "EMPTY": "",
    }
    assert attached_values(environment) == ("postgres://user:pass@host",)
