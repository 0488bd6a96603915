"""Each run starts from what the import has left, and from nothing that another run did."""

from __future__ import annotations

import os
import py_compile
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.errors import ConfigError, ExperimentPathError


def write(file: Path, source: str) -> str:
    """Write an experiment file; return the class path of its `run`."""
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(source)
    return f"{file}:run"


def run_all(path: str, *configs: dict[str, Any]) -> list[Any]:
    """Run on one backend, one after the other; return the results."""
    with LocalBackend() as backend:
        return [
            run_experiment(path, config, backend=backend).raise_for_error().results
            for config in configs
        ]


def test_a_module_is_imported_once_for_many_runs_that_each_have_a_process(tmp_path: Path) -> None:
    path = write(
        tmp_path / "counted.py",
        "import os, pathlib\n"
        "with open(pathlib.Path(__file__).with_name('imports'), 'a') as file: file.write('x')\n"
        "runs = []\n"
        "def run():\n"
        "    runs.append(1)\n"
        "    return [len(runs), os.getpid()]\n",
    )
    results = run_all(path, {}, {}, {})
    assert [count for count, _ in results] == [1, 1, 1]
    assert len({pid for _, pid in results}) == 3
    assert (tmp_path / "imports").read_text() == "x"


ONCE = {
    "set_start_method": "import multiprocessing; multiprocessing.set_start_method('spawn')",
    "interop threads": "import torch as t; t.set_num_interop_threads(1); t.ones(9) @ t.ones(9)",
    "process group": (
        "import torch.distributed as d, tempfile\n"
        "    place = 'file://' + tempfile.mktemp()\n"
        "    d.init_process_group('gloo', init_method=place, rank=0, world_size=1)"
    ),
}


@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=pytest.mark.slow) if "torch" in ONCE[w] else w for w in ONCE]
)
def test_what_can_be_done_once_in_a_process_is_done_in_every_run(what: str, tmp_path: Path) -> None:
    if "torch" in ONCE[what]:
        pytest.importorskip("torch")
    path = write(tmp_path / "once.py", f"def run():\n    {ONCE[what]}\n    return 'done'\n")
    assert run_all(path, {}, {}) == ["done", "done"]


def test_what_the_import_prints_is_in_the_log_of_each_run(tmp_path: Path) -> None:
    path = write(tmp_path / "prints.py", "print('importing')\ndef run(): print('running')\n")
    with LocalBackend() as backend:
        results = [run_experiment(path, backend=backend) for _ in range(2)]
    for result in results:
        assert result.run_dir is not None
        assert (result.run_dir / "log.txt").read_text() == "importing\nrunning\n"


def test_a_variable_that_changes_between_runs_is_seen_and_what_the_import_set_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(
        tmp_path / "reads.py",
        "import os\n"
        "os.environ['BY_IMPORT'] = 'import'\n"
        "os.environ['GIVEN'] = 'import'\n"
        "def run(): return [os.environ.get(k) for k in ('BY_IMPORT', 'GIVEN', 'LATER', 'GONE')]\n",
    )
    monkeypatch.setenv("GIVEN", "client")
    monkeypatch.setenv("GONE", "client")
    with LocalBackend() as backend:
        first = run_experiment(path, backend=backend).results
        monkeypatch.setenv("LATER", "client")
        monkeypatch.delenv("GONE")
        second = run_experiment(path, backend=backend).results
    assert first == ["import", "import", None, "client"]
    assert second == ["import", "import", "client", None]


READS_AT_IMPORT = """
import json, os, pathlib
from ml_experiments import Experiment, ExperimentConfig
DEFAULTS = json.loads((pathlib.Path(__file__).parent / "defaults.json").read_text())
PLACE = os.environ.get("READ_AT_IMPORT", "unset")
try:
    from optional_helper import NAME
except ImportError:
    NAME = "missing"
class Config(ExperimentConfig):
    lr: float = DEFAULTS["lr"]
    place: str = PLACE
class Reads(Experiment[Config]):
    def run(self): return [self.config.lr, self.config.place, NAME]
"""


def test_what_an_import_has_read_is_read_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "reads_at_import.py", READS_AT_IMPORT).replace(":run", ":Reads")
    defaults, helper = tmp_path / "defaults.json", tmp_path / "optional_helper.py"
    defaults.write_text('{"lr": 0.1}')
    with LocalBackend() as backend:

        def read() -> Any:
            return run_experiment(path, backend=backend).results

        assert read() == [0.1, "unset", "missing"]
        defaults.write_text('{"lr": 0.2}')
        assert read() == [0.2, "unset", "missing"]
        monkeypatch.setenv("READ_AT_IMPORT", "there")
        assert read() == [0.2, "there", "missing"]
        helper.write_text("NAME = 'helper'")
        assert read() == [0.2, "there", "helper"]
        monkeypatch.setenv("NOT_READ_AT_IMPORT", "1")
        templates = list(backend.templates._templates.values())
        assert read() == [0.2, "there", "helper"]
        assert list(backend.templates._templates.values()) == templates


def test_a_file_that_the_import_itself_changes_is_no_change(tmp_path: Path) -> None:
    path = write(
        tmp_path / "counts_itself.py",
        "import pathlib\n"
        "file = pathlib.Path(__file__).with_name('count')\n"
        "count = int(file.read_text()) + 1 if file.exists() else 1\n"
        "file.write_text(str(count))\n"
        "def run(): return count\n",
    )
    assert run_all(path, {}, {}) == [1, 1]


PRELOADS = """
import sys
from ml_experiments import Experiment
class Preloads(Experiment):
    preload = ("heavy", "missing_module", "broken")
    def run(self):
        return "heavy" in sys.modules
"""


def test_what_runs_import_in_methods_can_be_imported_once_for_all(tmp_path: Path) -> None:
    (tmp_path / "heavy.py").write_text(
        "import pathlib\n"
        "with open(pathlib.Path(__file__).with_name('imports'), 'a') as file: file.write('x')\n"
    )
    (tmp_path / "broken.py").write_text("raise RuntimeError\n")
    write(tmp_path / "preloads.py", PRELOADS)
    path = f"{tmp_path}/preloads.py:Preloads"
    assert run_all(path, {}, {}) == [True, True]
    assert (tmp_path / "imports").read_text() == "x"


def test_a_module_that_ends_its_process_is_an_error_of_the_import(tmp_path: Path) -> None:
    path = write(tmp_path / "ends.py", "import os\nos._exit(7)\ndef run(): pass\n")
    with pytest.raises(ExperimentPathError, match="exit code 7"):
        run_experiment(path)


def test_a_crash_of_an_import_shows_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "aborts.py", "import os\nos.abort()\ndef run(): pass\n")
    with pytest.raises(ExperimentPathError, match=r'signal 6\)[^$]*aborts\.py", line 2'):
        run_experiment(path)


def test_a_process_that_an_import_forks_and_that_stays_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "stays.py").write_text(
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    time.sleep(600)\n"
        "    os._exit(0)\n"
        "def run(): return 'ran'\n"
    )
    assert run_all(f"{tmp_path}/stays.py:run", {}) == ["ran"]


def test_a_process_that_an_import_forks_answers_for_nothing(tmp_path: Path) -> None:
    path = write(
        tmp_path / "forks.py",
        "import os\nchild = os.fork()\ndef run(): return 'parent' if child else 'child'\n",
    )
    assert run_all(path, {}, {}, {}) == ["parent"] * 3


def test_the_client_imports_nothing_of_the_users(tmp_path: Path) -> None:
    path = write(tmp_path / "foreign_code.py", "def run(x: int = 3): return x\n")
    result = run_experiment(path)
    assert result.results == 3
    assert "foreign_code" not in sys.modules


def test_two_projects_with_equal_module_names_are_kept_apart(tmp_path: Path) -> None:
    for name, default in (("one", 1), ("two", 2)):
        (tmp_path / name / "shared_name").mkdir(parents=True)
        (tmp_path / name / "shared_name" / "__init__.py").touch()
        (tmp_path / name / "shared_name" / "settings.py").write_text(f"DEFAULT = {default}\n")
        write(
            tmp_path / name / "train.py",
            "from shared_name.settings import DEFAULT\ndef run(x: int = DEFAULT): return x\n",
        )
    with LocalBackend() as backend:
        results = [
            run_experiment(f"{tmp_path}/{name}/train.py:run", backend=backend)
            for name in ("one", "two", "one")
        ]
    assert [result.results for result in results] == [1, 2, 1]


def test_runs_start_again_after_the_template_was_killed(tmp_path: Path) -> None:
    path = write(
        tmp_path / "kills.py",
        "import os, signal, psutil\n"
        "def run(kill: bool = False):\n"
        "    if kill:\n"
        "        me = psutil.Process()\n"
        "        me.parent().parent().kill()  # of the guard\n"
        "    return 'ran'\n",
    )
    assert run_all(path, {"kill": True}, {}) == ["ran", "ran"]


EDITS = {
    "default": ("def run(lr: float = 0.1): return lr\n", "def run(lr: float = 0.2): return lr\n"),
    "field": ("def run(): return 0.1\n", "def run(lr: float = 0.2): return lr\n"),
    "helper": ("from helper import VALUE\ndef run(): return VALUE\n", None),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_source_is_what_runs_and_is_checked(edit: str, tmp_path: Path) -> None:
    first, second = EDITS[edit]
    path = write(tmp_path / "edited.py", first)
    (tmp_path / "helper.py").write_text("VALUE = 0.1\n")
    with LocalBackend() as backend:
        assert run_experiment(path, backend=backend).results == 0.1
        if second is None:
            (tmp_path / "helper.py").write_text("VALUE = 0.2\n")
        else:
            write(tmp_path / "edited.py", second)
        assert run_experiment(path, backend=backend).results == 0.2


def test_a_source_replaced_by_an_older_one_of_equal_size_is_what_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "replaced.py", "def run(): return 1\n")
    older = tmp_path / "older.py"
    older.write_text("def run(): return 2\n")
    long_ago = time.time() - 1e6
    os.utime(older, (long_ago, long_ago))
    with LocalBackend() as backend:
        assert run_experiment(path, backend=backend).results == 1
        older.rename(tmp_path / "replaced.py")
        assert run_experiment(path, backend=backend).results == 2


def test_a_refused_config_costs_no_import_and_no_warm_instance(tmp_path: Path) -> None:
    file = tmp_path / "warm.py"
    file.write_text(
        "import os\n"
        "from ml_experiments import Experiment, ExperimentConfig\n"
        "class Config(ExperimentConfig):\n"
        "    size: int\n"
        "class Warm(Experiment[Config]):\n"
        "    setup_fields = ()\n"
        "    def setup(self): self.pid, self.runs = os.getpid(), 0\n"
        "    def run(self):\n"
        "        self.runs += 1\n"
        "        return [self.pid, self.runs]\n"
    )
    path = f"{file}:Warm"
    with LocalBackend() as backend:
        first = run_experiment(path, {"size": 1}, backend=backend).raise_for_error().results
        for refused in ({"size": "large"}, {"sise": 1}, {}):
            with pytest.raises(ConfigError):
                run_experiment(path, refused, backend=backend)
        second = run_experiment(path, {"size": 2}, backend=backend).raise_for_error().results
    assert second == [first[0], 2]


@pytest.mark.parametrize("is_zipped", [False, True], ids=["compiled", "zipped"])
def test_a_helper_without_a_source_file_is_imported_again_when_it_changes(
    is_zipped: bool, tmp_path: Path
) -> None:
    helper, archive = tmp_path / "helper.py", tmp_path / "helpers.zip"
    path = write(
        tmp_path / "uses_helper.py",
        "import pathlib, sys\n"
        "sys.path.insert(0, str(pathlib.Path(__file__).with_name('helpers.zip')))\n"
        "import helper\n"
        "def run(): return helper.value\n",
    )

    def change(value: int) -> None:
        helper.write_text(f"value = {value}\n")
        if is_zipped:
            with zipfile.ZipFile(archive, "w") as file:
                file.write(helper, helper.name)
        else:
            py_compile.compile(str(helper), cfile=str(helper.with_suffix(".pyc")))
        helper.unlink()

    with LocalBackend() as backend:
        for value in (1, 2):
            change(value)
            assert run_experiment(path, {}, backend=backend).results == value
