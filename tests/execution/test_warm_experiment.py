"""A warm worker is as good as a new one, or it is replaced by one."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import psutil
import pytest

from ml_experiments import LocalBackend, run_experiment
from ml_experiments.backends.base import Backend
from ml_experiments.backends.in_process import DebugBackend
from ml_experiments.runs.result import RunResult, RunStatus
from tests.support.experiments import Fit, Plain
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("notices", ["before", "while"])
def test_a_worker_that_died_while_idle_is_replaced(notices: str) -> None:
    with LocalBackend() as backend:
        first = run_experiment(Fit, {"steps": 1}, backend=backend).results["pid"]
        os.kill(first, signal.SIGKILL)
        if notices == "before":
            wait_until(lambda: not psutil.pid_exists(first), "its end")
        second = run_experiment(Fit, {"steps": 1}, backend=backend)
        assert second.status is RunStatus.SUCCESS
        assert second.results["pid"] != first
        os.kill(second.results["pid"], signal.SIGKILL)


@pytest.mark.parametrize(("deaths", "status"), [(1, "success"), (2, "error")])
def test_a_worker_that_dies_before_it_starts_a_run_is_replaced_once(
    deaths: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "started = os.path.join(os.path.dirname(__file__), 'started')\n"
        "if 'worker.child' in str(sys.orig_argv):\n"
        "    open(started, 'a').write('x')\n"
        # the first one only checks the config
        f"    if 1 < os.path.getsize(started) <= 1 + {deaths}:\n"
        "        os._exit(9)\n"
    )
    (tmp_path / "threaded.py").write_text(
        # with a thread of its own it can't be forked, so the worker is a new interpreter
        "import threading\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "def train(): pass\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run_experiment(f"{tmp_path}/threaded.py:train")
    assert result.status == status
    if result.error:
        assert "ended with code 9 before it started the run" in result.error.message


def test_modules_of_one_name_are_each_experiments_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "namesake_helper.py").write_text(f"FOLDER = {name!r}\n")
        (tmp_path / name / f"train_{name}.py").write_text(
            "import namesake_helper\ndef train(config):\n    return namesake_helper.FOLDER\n"
        )
    with LocalBackend() as backend:
        found = [
            run_experiment(f"{tmp_path}/{name}/train_{name}.py:train", backend=backend).results
            for name in ("a", "b", "b", "a")
        ]
    assert found == ["a", "b", "b", "a"]


CHANGES = """
import os
from ml_experiments import Experiment, ExperimentConfig
os.environ["BY_IMPORT"] = "kept"

def changes():
    os.chdir("/")
    os.environ["ADDED"] = "leaks"
    os.environ["GIVEN"] = "changed"
    os.environ.pop("REMOVED")

def state():
    return [os.getcwd(), *map(os.environ.get, ("ADDED", "GIVEN", "REMOVED", "BY_IMPORT"))]

class SetsUp(Experiment):
    class Config(ExperimentConfig):
        x: int = 0

    setup_fields = ()

    def setup(self):
        os.environ["BY_SETUP"] = "kept"

    def run(self):
        seen = [os.environ.get("BY_SETUP"), os.environ.get("BY_RUN"), "setup" in vars(self)]
        os.environ["BY_RUN"] = "leaks"
        return seen
"""


def test_what_a_run_does_to_its_process_does_not_reach_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "changing.py").write_text(CHANGES)
    monkeypatch.setenv("GIVEN", "before")
    monkeypatch.setenv("REMOVED", "before")
    with LocalBackend() as backend:
        for name in ("changes", "state"):
            result = run_experiment(f"{tmp_path}/changing.py:{name}", backend=backend)
        assert result.results == [str(Path.cwd()), None, "before", "before", "kept"]
        warm = [
            run_experiment(f"{tmp_path}/changing.py:SetsUp", {"x": x}, backend=backend).results
            for x in range(3)
        ]
    assert warm == [["kept", None, False]] * 3


SETTINGS = """
import asyncio, decimal, faulthandler, gc, locale, logging, multiprocessing, os, resource, signal
import socket, sys, threading, warnings
from pathlib import Path
from ml_experiments import Experiment, ExperimentConfig, current_run

def state():
    import numpy as np, torch
    return {
        "locale": locale.setlocale(locale.LC_ALL),
        "gc": [gc.isenabled(), gc.get_threshold()],
        "switch interval": sys.getswitchinterval(),
        "digits": sys.get_int_max_str_digits(),
        "decimal": decimal.getcontext().prec,
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        "hooks": [h.__name__ for h in (sys.excepthook, sys.unraisablehook, threading.excepthook)],
        "profile": sys.getprofile() is None,
        "policy": type(asyncio.get_event_loop_policy()).__name__,
        "start method": multiprocessing.get_start_method(allow_none=True),
        "signals": [signal.getsignal(s) == signal.SIG_DFL for s in (15, signal.SIGALRM)],
        "timer": signal.getitimer(signal.ITIMER_REAL)[0] > 0,
        "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "socket": socket.getdefaulttimeout(),
        "logging": [logging.root.manager.disable, logging.getLogger("a.b").level],
        "handlers": len(logging.getLogger("a.b").handlers),
        "faulthandler": faulthandler.is_enabled(),
        "warnings": warnings.showwarning.__name__,
        "finders": len(sys.path_hooks),
        "stream": [sys.stdout.encoding, sys.stdout.line_buffering],
        "numpy": [np.geterr()["over"], np.get_printoptions()["precision"]],
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": torch.backends.cudnn.benchmark,
        "precision": torch.get_float32_matmul_precision(),
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "anomaly": torch.is_anomaly_enabled(),
        "denormal": float(torch.tensor([1e-40]) * 1) == 0,
    }

def change():
    import numpy as np, torch
    def hook(*_): pass
    locale.setlocale(locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C")
    gc.disable(); gc.set_threshold(7, 7, 7)
    sys.setswitchinterval(0.5); sys.set_int_max_str_digits(700); sys.setprofile(hook)
    decimal.getcontext().prec = 5
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )
    sys.excepthook = sys.unraisablehook = threading.excepthook = hook
    asyncio.set_event_loop_policy(type("Own", (asyncio.DefaultEventLoopPolicy,), {})())
    multiprocessing.set_start_method("spawn")
    for number in (15, signal.SIGALRM): signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); signal.alarm(100)
    socket.setdefaulttimeout(1)
    logging.disable(50); logging.getLogger("a.b").setLevel(10)
    handler = logging.FileHandler(current_run().output_dir / "own.txt")
    logging.getLogger("a.b").addHandler(handler)
    faulthandler.disable(); warnings.showwarning = hook; sys.path_hooks.append(hook)
    sys.stdout.reconfigure(encoding="latin-1", line_buffering=False)
    np.seterr(all="raise"); np.set_printoptions(precision=2)
    torch.set_num_threads(3); torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = True; torch.set_float32_matmul_precision("medium")
    torch.set_default_dtype(torch.float64); torch.autograd.set_detect_anomaly(True)
    torch.set_default_device("meta"); torch.set_flush_denormal(True)

class Changes(Experiment):
    class Config(ExperimentConfig):
        changes: bool = False
    setup_fields = ()
    def run(self):
        if self.config.changes:
            change()
            self.file = open(current_run().output_dir / "held.txt", "w")
            self.file.write("step,loss")
            return os.getpid()
        return [os.getpid(), state()]
"""


def test_settings_that_a_run_has_changed_are_put_back_for_the_next(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "settings_changed.py").write_text(SETTINGS)
    path = f"{tmp_path}/settings_changed.py:Changes"
    with LocalBackend() as backend:
        before, changed, after = (
            run_experiment(path, {"changes": changes}, backend=backend).raise_for_error()
            for changes in (False, True, False)
        )
        # the file is open still
        assert ("artifacts/held.txt", 9) in [(a.path, a.size_bytes) for a in changed.artifacts]
    assert after.results == before.results
    assert changed.results == after.results[0]


def test_what_can_not_be_put_back_ends_the_process(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "infers.py").write_text(
        "import os\nfrom ml_experiments import Experiment\n"
        "class Infers(Experiment):\n"
        "    setup_fields = ()\n"
        "    def run(self):\n"
        "        import torch\n"
        "        found = torch.is_inference_mode_enabled()\n"
        "        global mode\n"
        "        mode = torch.inference_mode()\n"
        "        mode.__enter__()\n"
        "        return [found, os.getpid()]\n"
    )
    with LocalBackend() as backend:
        (first, one), (second, other) = (
            run_experiment(f"{tmp_path}/infers.py:Infers", backend=backend).results
            for _ in range(2)
        )
    assert (first, second) == (False, False)
    assert one != other


def test_a_helper_that_was_edited_is_imported_again(tmp_path: Path) -> None:
    (tmp_path / "uses_helper.py").write_text(
        "from ml_experiments import Experiment\n"
        "class Uses(Experiment):\n"
        "    setup_fields = ()\n"
        "    def run(self):\n"
        "        import edited_helper\n"
        "        return edited_helper.VALUE\n"
    )
    results = []
    with LocalBackend() as backend:
        for value in (1, 2):
            (tmp_path / "edited_helper.py").write_text(f"VALUE = {value}\n")
            results.append(run_experiment(f"{tmp_path}/uses_helper.py:Uses", backend=backend))
    assert [result.results for result in results] == [1, 2]


CHECKED = """
import os
from ml_experiments import ConfigError, Experiment, ExperimentConfig, current_run

class Loads(Experiment):
    class Config(ExperimentConfig):
        model: str

    setup_fields = ("model",)
    setups = 0

    def check_setup(self):
        current_run().progress(0, 1, text="checking")
        if self.config.model == "absent":
            raise ConfigError("there is no such model")
        if self.config.model == "bug":
            raise KeyError("a bug")

    def setup(self):
        if self.config.model == "damaged":
            raise ConfigError("it can't be loaded")
        Loads.setups += 1
        self.model = self.config.model

    def run(self):
        return [self.model, Loads.setups, os.getpid()]

class Other(Experiment):
    class Config(ExperimentConfig):
        model: str

    setup_fields = ("model",)

    def run(self):
        return [self.config.model, Loads.setups, os.getpid()]
"""


@pytest.mark.parametrize("backend_class", [LocalBackend, DebugBackend])
def test_a_mistake_that_check_setup_finds_leaves_the_warm_instance(
    backend_class: type[Backend], tmp_path: Path
) -> None:
    (tmp_path / "checked_setup.py").write_text(CHECKED)
    path = f"{tmp_path}/checked_setup.py"
    is_local = backend_class is LocalBackend
    with LocalBackend(max_workers=1) if is_local else DebugBackend() as backend:

        def load(model: str, name: str = "Loads") -> RunResult:
            return run_experiment(f"{path}:{name}", {"model": model}, backend=backend)

        first = load("a").results
        assert first[:2] == ["a", 1]
        for model, kind in (("absent", "config"), ("bug", "experiment")):
            failed = load(model)
            assert failed.error is not None
            assert failed.error.kind == kind
            assert load("a").results == first
        # each set-up has its own process
        other = load("b").results
        assert other[:2] == ["b", 1 if is_local else 2]
        assert (other[2] == first[2]) is not is_local
        assert load("damaged").error.kind == "config"  # type: ignore[union-attr]
        assert load("damaged").error.kind == "config"  # type: ignore[union-attr]
        assert load("b").results[0] == "b"
        assert load("c", "Other").results[1] == (0 if is_local else 3)
        assert load("d", "Other").results[0] == "d"
        assert load("a").results[0] == "a"


def test_a_relative_runs_folder_is_the_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "leaving.py").write_text(
        "import os\ndef leaves():\n    os.chdir('/')\n    return 'there'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for given, meant in (("kept", tmp_path / "kept"), ("~/kept", tmp_path / "home" / "kept")):
        result = run_experiment("leaving.leaves", runs_dir=Path(given))
        assert result.results == "there"
        assert result.run_dir == meant / result.run_id
        assert (result.run_dir / "result.json").exists()


def test_runs_work_in_a_client_with_many_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2000:
        pytest.skip("this system allows fewer open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert run_experiment(Plain).status is RunStatus.SUCCESS
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
