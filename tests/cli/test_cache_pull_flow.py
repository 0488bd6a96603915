"""`ml-experiments cache pull|verify|stats` on this machine's cache."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.support.cache_command import COMMAND, A, answer, call, names
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow


def test_a_pull_on_a_terminal_shows_how_far_it_is(home: Path, hub: HubServer) -> None:
    hub.add_repo("org/live", {"b.safetensors": os.urandom(25_000_000)})
    controller, terminal = pty.openpty()
    command = [*COMMAND, "pull", "org/live", "--local", "--json"]
    environment = {**os.environ, "HF_HOME": str(home), **hub.environment(), "TERM": "xterm"}
    shown = bytearray()

    def watch() -> None:
        with contextlib.suppress(OSError):  # the terminal is closed
            while chunk := os.read(controller, 10_000):
                shown.extend(chunk)

    reader = threading.Thread(target=watch)
    reader.start()
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=terminal, check=True
    )
    os.close(terminal)
    reader.join(10)
    os.close(controller)
    assert json.loads(done.stdout)["downloaded_bytes"] == 25_000_000
    assert b"/25.0 MB" in shown


def test_pull_then_verify_then_repair(home: Path, hub: HubServer) -> None:
    repo = hub.add_repo("org/new", {"a.json": b"{}", "b.safetensors": b"w" * 3000})
    done = call(home, "pull", "org/new@main", "--local", hub=hub)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        f"org/new@{repo.commit[:8]}: 3.0 kB in 2 file(s); downloaded 3.0 kB"
    )
    assert call(home, "verify", "org/new", "--local").returncode == 0
    blob = home / "hub" / "models--org--new" / "snapshots" / repo.commit / "a.json"
    blob.resolve().write_bytes(b"[]")
    wrong = call(home, "verify", "--local")
    assert wrong.returncode == 1
    assert "--repair removes it" in wrong.stdout
    assert call(home, "verify", "--repair", "--local").returncode == 0
    outcome = answer(call(home, "pull", "org/new", "--local", "--json", hub=hub))
    assert outcome["downloaded_files"] == 1


def test_pull_takes_a_revision(home: Path, hub: HubServer) -> None:
    repo = hub.add_repo("org/two-of-it", {"a.json": b"{}"}, revisions={"v2": {"a.json": b"[1]"}})
    outcome = answer(call(home, "pull", "org/two-of-it@v2", "--local", "--json", hub=hub))
    assert outcome["revision"] == repo.refs["v2"] != repo.commit


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_CACHE": "elsewhere"}])
def test_a_first_pull_goes_where_the_library_looks(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    hub.add_repo("org/first", {"a.json": b"{}"})
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    new_home = tmp_path / "new"
    outcome = answer(call(new_home, "pull", "org/first", "--local", "--json", hub=hub))
    code = "from huggingface_hub import snapshot_download as s; print(s('org/first'))"
    offline = {"HF_HOME": str(new_home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == outcome["path"]
    assert names(call(new_home, "list", "--local", "--json")) == ["org/first"]


def test_pull_takes_globs_and_a_kind(home: Path, hub: HubServer) -> None:
    hub.add_repo("org/tables", {"a.csv": b"1", "b.json": b"{}", "c.csv": b"3"}, kind="dataset")
    options = ("--kind", "dataset", "--include", "*.csv", "--exclude", "c*")
    outcome = answer(call(home, "pull", "org/tables", *options, "--local", "--json", hub=hub))
    assert (outcome["files"], outcome["bytes"]) == (1, 1)


def test_pull_of_a_gated_name_is_a_message(home: Path, hub: HubServer) -> None:
    hub.add_repo("org/gated", {"a.json": b"{}"}, gated=True)
    done = call(home, "pull", "org/gated", "--local", hub=hub)
    assert done.returncode == 2
    assert done.stderr.startswith("error: org/gated is gated: accept its terms at")


def test_pull_while_offline_is_a_message(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = call(home, "pull", "org/one", "--local")
    assert done.returncode == 2
    assert "while HF_HUB_OFFLINE is set; unset it" in done.stderr


def test_stats_counts_what_manifests_say(home: Path, runs_dir: Path) -> None:
    use = {"repo_id": "org/one", "kind": "model", "revision": A, "bytes": 5000, "hit": True}
    (runs_dir / "r1").mkdir()
    (runs_dir / "r1" / "manifest.json").write_text(json.dumps({"cached_models": [use]}))
    assert "1 run: 1 hit saved 5.0 kB, 0 downloads took 0 bytes" in call(home, "stats").stdout
    assert answer(call(home, "stats", "--json"))["bytes_saved"] == 5000


def test_stats_takes_a_folder(home: Path, tmp_path: Path) -> None:
    use = {"repo_id": "org/one", "kind": "model", "revision": A, "bytes": 7, "hit": True}
    (tmp_path / "mine" / "r1").mkdir(parents=True)
    (tmp_path / "mine" / "r1" / "manifest.json").write_text(json.dumps({"cached_models": [use]}))
    folder = str(tmp_path / "mine")
    assert answer(call(home, "stats", "--runs-dir", folder, "--json"))["bytes_saved"] == 7
    for wrong in ("", str(tmp_path / "missing")):
        done = call(home, "stats", "--runs-dir", wrong)
        assert (done.returncode, "there is no folder of runs at" in done.stderr) == (2, True)
