"""Secrets leave log.txt, whoever dies and however full the disk is."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ml_experiments import run_experiment
from ml_experiments.execution.logs import LogTail
from ml_experiments.execution.observer import Observer
from ml_experiments.redaction.redactor import Redactor
from ml_experiments.runs.folder import RunFolder
from ml_experiments.runs.result import RunStatus
from ml_experiments.runs.spec import RunSpec
from tests.support.small_disk import small_disk
from tests.support.waiting import wait_until

SECRET = "tok-5f4dcc3b5aa765d61d83"
SAYS = """
import os, time

def says(how):
    print("it is", os.environ["PLANTED_TOKEN"], flush=True)
    while how != "ends":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            if how == "waits":
                raise

def says_much():
    print(os.environ["PLANTED_TOKEN"] + "x" * 600_000)
"""


def start_client(folder: Path, how: str) -> subprocess.Popen[bytes]:
    (folder / "telltale.py").write_text(SAYS)
    command = [sys.executable, "-m", "ml_experiments", "run", f"{folder}/telltale.py:says"]
    return subprocess.Popen([*command, f"how={how}"], stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["waits", pytest.param("goes on", marks=pytest.mark.slow)])
def test_a_killed_client_leaves_no_secret_in_the_log(
    how: str, tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", SECRET)
    client = start_client(tmp_path, how)
    wait_until(lambda: [f for f in runs_dir.glob("*/log.txt") if SECRET in f.read_text()], "output")
    workers = psutil.Process(client.pid).children(recursive=True)
    client.send_signal(signal.SIGKILL)
    client.wait()
    wait_until(lambda: not any(worker.is_running() for worker in workers), "the worker's end")
    (log_file,) = runs_dir.glob("*/log.txt")
    assert log_file.read_text() == "it is <redacted>\n"
    if how == "waits":
        result = json.loads((log_file.parent / "result.json").read_text())
        assert result["status"] == "cancelled"


def test_a_disk_too_full_to_redact_on_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLANTED_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)  # of a git repository's folder the manifest holds much
    (tmp_path / "telltale.py").write_text(SAYS)
    with small_disk(tmp_path / "disk", "1m") as disk:
        for backend in ("local", "debug"):
            result = run_experiment(
                f"{tmp_path}/telltale.py:says_much", runs_dir=disk, backend=backend
            )
            assert result.status is RunStatus.SUCCESS
            assert result.run_dir is not None
            shutil.rmtree(result.run_dir)
    told = [r.getMessage() for r in caplog.records if "may hold secrets" in r.getMessage()]
    assert len(told) == 2
    assert all("No space left" in text and SECRET not in text for text in told)


@pytest.mark.parametrize("secrets", [(), ("学習中-secret",)])
def test_no_character_is_cut_where_a_piece_of_output_ends(
    secrets: tuple[str, ...], tmp_path: Path
) -> None:
    output = ("é学🚀" * 30_000).encode() + b"\xff" + "学".encode()[:2]
    shown: list[bytes] = []

    class Collector(Observer):
        def log(self, spec: RunSpec, data: bytes) -> None:
            shown.append(data)

    spec = RunSpec(run_id="x", experiment="a.b", config={}, seed=1, created_at="")
    (tmp_path / "log.txt").write_bytes(output)
    folder = RunFolder(tmp_path)
    tail = LogTail(spec, folder, folder.log_file, Collector(), Redactor(secrets))
    with contextlib.closing(tail):
        tail.show_some()
        tail.show_some()
        pieces = list(shown)
        tail.show_rest(lambda: False)
    assert b"".join(shown) == output
    for piece in pieces:
        assert piece.decode()


def test_the_end_of_a_long_line_begins_with_a_whole_character(tmp_path: Path) -> None:
    shown: list[bytes] = []

    class Collector(Observer):
        def log(self, spec: RunSpec, data: bytes) -> None:
            shown.append(data)

    spec = RunSpec(run_id="x", experiment="a.b", config={}, seed=1, created_at="")
    folder = RunFolder(tmp_path)
    for shift in range(3):
        folder.log_file.write_bytes(b"x" * shift + "学".encode() * 300_000)
        shown.clear()
        tail = LogTail(spec, folder, folder.log_file, Collector(), Redactor(()))
        with contextlib.closing(tail):
            tail.show_rest(lambda: True)
        assert set(b"".join(shown).decode()) == {"\n", "学"}


@pytest.mark.parametrize("backend", ["local", "debug"])
@pytest.mark.parametrize("printed", ["", "finished\\n", "not finished"])
def test_a_traceback_begins_on_a_line_of_its_own(
    backend: str, printed: str, tmp_path: Path
) -> None:
    (tmp_path / "fails_after.py").write_text(
        f"def run():\n    print('{printed}', end='')\n    raise ValueError('no')\n"
    )
    result = run_experiment(f"{tmp_path}/fails_after.py:run", backend=backend)
    assert result.run_dir is not None
    before, traceback, _ = (result.run_dir / "log.txt").read_text().partition("Traceback (most")
    assert traceback
    assert before == (printed and f"{printed.removesuffix(chr(92) + 'n')}\n")
