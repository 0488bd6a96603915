"""A run's process ends as a Python program does, before its artifacts are listed."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from ml_experiments import LocalBackend, Observer, run_experiment
from ml_experiments.runs.spec import RunSpec
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LEAVES = """
import atexit, contextvars, csv, gzip, os, sys, threading, weakref
from ml_experiments import Experiment, current_run

def to(name, mode="w"):
    return open(current_run().output_dir / name, mode)

def global_file():
    global table
    table = to("global_file.csv")
    csv.writer(table).writerow(["step", "loss"])

def compressed():
    global archive
    archive = gzip.open(current_run().output_dir / "compressed.gz", "wt")
    archive.write("step,loss\\n")

def exit_handler():
    folder = current_run().output_dir
    atexit.register(lambda: (folder / "exit_handler.txt").write_text("step,loss"))

def finalizer():
    class Owner: pass
    global owner
    owner, folder = Owner(), current_run().output_dir
    weakref.finalize(owner, lambda: (folder / "finalizer.txt").write_text("step,loss"))

def thread():
    folder = current_run().output_dir
    def work():
        threading.Event().wait(0.3)
        (folder / "thread.txt").write_text("step,loss")
    threading.Thread(target=work).start()

def replaced_stdout():
    class Tee:
        def __init__(self, terminal, file): self.terminal, self.file = terminal, file
        def write(self, text): self.terminal.write(text); self.file.write(text)
        def flush(self): pass
    sys.stdout = Tee(sys.stdout, to("replaced_stdout.txt"))
    print("step,loss")

def context_variable():
    file = to("context_variable.txt")
    file.write("step,loss")
    contextvars.ContextVar("file").set(file)

def other_module():
    csv.file_of_a_run = to("other_module.txt")
    csv.file_of_a_run.write("step,loss")

def daemon():
    file = to("daemon.txt")
    file.write("step,loss")
    threading.Thread(target=lambda: threading.Event().wait() or file, daemon=True).start()

def c_library():
    import ctypes
    ctypes.CDLL(None).printf(b"from C, without an end of line")

class in_setup(Experiment):
    def setup(self): self.table = to("in_setup.csv")
    def run(self): self.table.write("step,loss")

class in_a_cycle(Experiment):
    def setup(self):
        self.itself = self
        self.table = to("in_a_cycle.csv")
    def run(self): self.table.write("step,loss")
"""

KINDS = {
    "global_file": "global_file.csv",
    "compressed": "compressed.gz",
    "exit_handler": "exit_handler.txt",
    "finalizer": "finalizer.txt",
    "thread": "thread.txt",
    "replaced_stdout": "replaced_stdout.txt",
    "context_variable": "context_variable.txt",
    "other_module": "other_module.txt",
    "daemon": "daemon.txt",
    "in_setup": "in_setup.csv",
    "in_a_cycle": "in_a_cycle.csv",
}


@pytest.fixture
def leaves(tmp_path: Path) -> Path:
    file = tmp_path / "leaves.py"
    file.write_text(LEAVES)
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_run_leaves_to_its_end_is_written_and_listed(kind: str, leaves: Path) -> None:
    result = run_experiment(f"{leaves}:{kind}").raise_for_error()
    [artifact] = result.artifacts
    assert artifact.path == f"artifacts/{KINDS[kind]}"
    assert artifact.size_bytes > 8
    assert result.run_dir is not None
    content = (result.run_dir / artifact.path).read_bytes()
    assert len(content) == artifact.size_bytes
    if kind == "compressed":
        import gzip

        assert gzip.decompress(content) == b"step,loss\n"


def test_what_c_code_has_printed_is_in_the_log(leaves: Path) -> None:
    result = run_experiment(f"{leaves}:c_library").raise_for_error()
    assert result.run_dir is not None
    assert (result.run_dir / "log.txt").read_text() == "from C, without an end of line"


def test_a_process_that_does_not_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_experiments.execution.supervisor.END_GRACE_S", 0.5)
    (tmp_path / "stays.py").write_text(
        "import atexit, os, time\n"
        "def run():\n    atexit.register(time.sleep, 600)\n    return os.getpid()\n"
    )
    notices: list[str] = []

    class Notices(Observer):
        def notice(self, spec: RunSpec, text: str) -> None:
            notices.append(text)

    observer = Notices()
    result = run_experiment(f"{tmp_path}/stays.py:run", observer=observer).raise_for_error()
    assert ["had not ended 0.5 s after its run" in notice for notice in notices] == [True]
    wait_until(lambda: not psutil.pid_exists(result.results), "its end")


ONCE_FOR_ALL = """
import atexit, pathlib, tempfile
here = pathlib.Path(__file__).parent
{at_import}
def run():
    return [folder.name, pathlib.Path(folder.name).is_dir()]
"""


def test_a_temporary_folder_of_the_import_lives_as_long_as_its_runs(tmp_path: Path) -> None:
    file = tmp_path / "owns.py"
    file.write_text(ONCE_FOR_ALL.format(at_import="folder = tempfile.TemporaryDirectory()"))
    with LocalBackend() as backend:
        first, second = (run_experiment(f"{file}:run", backend=backend).results for _ in range(2))
    assert first == second == [first[0], True]
    assert not Path(first[0]).exists()


def test_an_exit_handler_of_the_import_is_called_after_each_run(tmp_path: Path) -> None:
    file = tmp_path / "handles.py"
    at_import = (
        "folder = tempfile.TemporaryDirectory()\n"
        "def note():\n"
        "    with open(here / 'called', 'a') as called: called.write('x')\n"
        "atexit.register(note)\n"
        "atexit.register(folder.cleanup)\n"
    )
    file.write_text(ONCE_FOR_ALL.format(at_import=at_import))
    with LocalBackend() as backend:
        results = [run_experiment(f"{file}:run", backend=backend).results for _ in range(2)]
    assert [is_there for _, is_there in results] == [True, True]
    assert results[0] != results[1]  # a new interpreter each, with a folder of its own
    # and one more: the process that checked the configs
    assert (tmp_path / "called").read_text() == "xxx"


FORKS = """
import os, sys, time
def run(how: str):
    pid = os.fork()
    if pid == 0:
        print("child", flush=True)
        if how == "returns": return "the child's"
        if how == "raises": raise RuntimeError("the child's")
        sys.exit(3)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
"""


@pytest.mark.parametrize(("how", "code"), [("returns", 0), ("raises", 1), ("exits", 3)])
def test_a_child_that_the_experiment_forks_does_not_answer_for_it(
    how: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "forks.py").write_text(FORKS)
    result = run_experiment(f"{tmp_path}/forks.py:run", {"how": how}).raise_for_error()
    assert result.results == code
