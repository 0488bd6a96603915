"""Experiments from wherever people keep them, sent to a container that has none of it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modal_emulator import Emulator

pytestmark = pytest.mark.slow

RUN = "from ml_experiments.runner.run import run_experiment\n"
EXPERIMENT = """
from near_by import VALUE

class Exp:
    def __init__(self, config):
        self.config = config

    def run(self):
        return {"value": VALUE, "x": self.config["x"]}
"""
NEAR_BY = "VALUE = 'from near by'\n"


def start(
    emulator: Emulator, folder: Path, *command: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **emulator.environment}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def write(folder: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))


def test_a_class_in_a_script_that_runs_as_main(modal_emulator: Emulator, tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            import pytest  # not in the image, and not needed there
            from ml_experiments.runner.run import run_experiment
            print(run_experiment(Exp, {"x": 1}, backend="modal").raise_for_error().results)
    """
    write(tmp_path, {"script.py": EXPERIMENT + textwrap.dedent(main), "near_by.py": NEAR_BY})
    done = start(modal_emulator, tmp_path, "script.py")
    assert "{'value': 'from near by', 'x': 1}" in done.stdout, done.stderr


def test_a_module_started_with_dash_m(modal_emulator: Emulator, tmp_path: Path) -> None:
    main = """
        if __name__ == "__main__":
            from ml_experiments.runner.run import run_experiment
            print(run_experiment(Exp, {"x": 2}, backend="modal").raise_for_error().results)
    """
    source = EXPERIMENT.replace("near_by", "pkg.near_by") + textwrap.dedent(main)
    write(tmp_path, {"pkg/script.py": source, "pkg/near_by.py": NEAR_BY})
    done = start(modal_emulator, tmp_path, "-m", "pkg.script")
    assert "{'value': 'from near by', 'x': 2}" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("files", "path", "experiment"),
    [
        (
            {
                "src/proj/__init__.py": "",
                "src/proj/exp.py": EXPERIMENT.replace("near_by", ".near_by"),
            }
            | {"src/proj/near_by.py": NEAR_BY},
            "src",
            "proj.exp.Exp",
        ),
        (
            {"space/team/exp.py": EXPERIMENT.replace("near_by", "space.near_by")}
            | {"space/near_by.py": NEAR_BY},
            ".",
            "space.team.exp:Exp",
        ),
        (
            {"deep/folder/exp.py": EXPERIMENT, "deep/folder/near_by.py": NEAR_BY},
            None,
            "deep/folder/exp.py:Exp",
        ),
        # hides a standard module from the experiment only, not from the container
        (
            {"random.py": EXPERIMENT, "near_by.py": NEAR_BY},
            None,
            "random.py:Exp",
        ),
        ({"my-exp.py": EXPERIMENT, "near_by.py": NEAR_BY}, None, "my-exp.py:Exp"),
    ],
    ids=[
        "src layout",
        "namespace package",
        "file",
        "named like a standard module",
        "no module name",
    ],
)
def test_a_layout_works(
    modal_emulator: Emulator,
    tmp_path: Path,
    files: dict[str, str],
    path: str | None,
    experiment: str,
) -> None:
    write(tmp_path, files)
    options = ("--gpu", "t4", "--json")
    done = start(
        modal_emulator,
        tmp_path,
        *("-P", "-m", "ml_experiments", "run", experiment, "x=3", *options),
        path=tmp_path / path if path else None,
    )
    assert done.returncode == 0, done.stderr
    assert '"value": "from near by"' in done.stdout


def test_an_editable_install_is_sent_along(modal_emulator: Emulator, tmp_path: Path) -> None:
    # as pip's editable installs do: the package's folder stands in a .pth file's place on the path
    write(tmp_path / "lib" / "src", {"near_by/__init__.py": "from near_by.deeper import VALUE\n"})
    write(tmp_path / "lib" / "src", {"near_by/deeper.py": NEAR_BY})
    write(tmp_path / "work", {"exp.py": EXPERIMENT})
    code = (
        f"import sys; sys.path.append({str(tmp_path / 'lib' / 'src')!r})\n{RUN}"
        "print(run_experiment('exp.py:Exp', {'x': 4}, backend='modal').raise_for_error().results)"
    )
    done = start(modal_emulator, tmp_path / "work", "-c", code)
    assert "{'value': 'from near by', 'x': 4}" in done.stdout, done.stderr


def test_a_missing_module_and_package_stop_the_run_with_exit_code_2(
    modal_emulator: Emulator, tmp_path: Path
) -> None:
    write(
        tmp_path,
        {"exp.py": f"def later():\n    import pytest\n{EXPERIMENT}", "near_by.py": NEAR_BY},
    )
    done = start(
        modal_emulator, tmp_path, "-m", "ml_experiments", "run", "exp.py:Exp", "--gpu", "t4"
    )
    assert done.returncode == 2
    assert f"{tmp_path}/exp.py:2 imports pytest" in done.stderr
    assert "--pip pytest" in done.stderr
    assert not (tmp_path / "runs").exists()
