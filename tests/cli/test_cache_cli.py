"""`ml-experiments cache`, as a whole process, on this machine's cache."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_cache import commit_of, fingerprint, set_age, write_repo
from tests.support.hub_server import HubServer

COMMAND = [sys.executable, "-m", "ml_experiments", "cache"]
A, B = commit_of("a"), commit_of("b")


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An HF_HOME with two models and a dataset."""
    hub = tmp_path / "huggingface" / "hub"
    write_repo(hub, "org/one", {A: {"config.json": b"{}", "m.safetensors": b"w" * 5000}})
    set_age(write_repo(hub, "org/two", {B: {"config.json": b"[]"}}), days=60)
    write_repo(hub, "org/rows", {A: {"data.csv": b"a,b"}}, kind="dataset")
    return tmp_path / "huggingface"


def call(
    home: Path, *arguments: str, hub: HubServer | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_HOME": str(home), **(hub.environment() if hub else {})}
    environment.pop("HF_TOKEN", None)
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def names(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [item["name"] for item in answer(done)["items"]]


def test_list_shows_sizes_and_a_total(home: Path) -> None:
    done = call(home, "list", "--local")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["name", "kind", "size", "revisions", "last", "use"]
    assert lines[1].split() == ["org/one", "model", "5.0", "kB", "1", "just", "now"]
    assert lines[3].split() == ["org/two", "model", "2", "bytes", "1", "60", "days", "ago"]
    assert lines[-1].startswith("5.0 kB in ")


def test_list_takes_a_pattern_a_kind_and_an_order(home: Path) -> None:
    assert names(call(home, "list", "--local", "--json")) == ["org/one", "org/rows", "org/two"]
    assert names(call(home, "list", "ORG/*O*", "--local", "--json")) == [
        "org/one",
        "org/rows",
        "org/two",
    ]
    assert names(call(home, "list", "*two", "--local", "--json")) == ["org/two"]
    assert names(call(home, "list", "--kind", "dataset", "--local", "--json")) == ["org/rows"]
    sizes = names(call(home, "list", "--sort", "size", "--local", "--json"))
    assert sizes == ["org/one", "org/rows", "org/two"]
    assert names(call(home, "list", "--sort", "used", "--local", "--json"))[-1] == "org/two"


def test_show_names_revisions_and_files(home: Path) -> None:
    done = call(home, "show", "org/one", "--local")
    assert done.returncode == 0, done.stderr
    assert A in done.stdout
    assert "m.safetensors" in done.stdout
    [item] = answer(call(home, "show", "ORG/ONE", "--local", "--json"))["items"]
    assert [(f["path"], f["bytes"]) for f in item["contents"]] == [
        ("config.json", 2),
        ("m.safetensors", 5000),
    ]


def test_show_of_a_name_that_is_not_there_suggests_one(home: Path) -> None:
    done = call(home, "show", "org/onee", "--local")
    assert done.returncode == 2
    assert "did you mean 'org/one'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_clear_without_a_terminal_needs_yes(home: Path) -> None:
    before = fingerprint(home)
    done = call(home, "clear", "org/*", "--local")
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert fingerprint(home) == before


def test_a_dry_run_says_what_yes_then_does(home: Path) -> None:
    before = fingerprint(home)
    dry = answer(call(home, "clear", "org/*", "--local", "--dry-run", "--json"))
    assert fingerprint(home) == before
    done = answer(call(home, "clear", "org/*", "--local", "--yes", "--json"))
    assert (dry["dry_run"], done["dry_run"]) == (True, False)
    for key in ("deleted", "freed_mb", "freed_bytes", "names", "kept"):
        assert dry[key] == done[key]
    assert done["names"] == ["org/one", "org/two"]
    assert names(call(home, "list", "--local", "--json")) == ["org/rows"]


def test_clear_takes_age_size_kind_and_latest(home: Path) -> None:
    def cleared(*arguments: str) -> list[str]:
        command = ("clear", "*", "--local", "--dry-run", "--json", *arguments)
        found: list[str] = answer(call(home, *command))["names"]
        return found

    assert cleared("--older-than", "30d") == ["org/two"]
    assert cleared("--larger-than", "4kB") == ["org/one"]
    assert cleared("--kind", "dataset") == ["org/rows"]
    assert cleared("--kind", "dataset", "--kind", "model") == ["org/one", "org/rows", "org/two"]
    assert cleared("--keep-latest") == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("clear", "", "--yes"), "the pattern is empty"),
        (("clear", "../*", "--yes"), "it has '..'"),
        (("clear", "/etc/*", "--yes"), "it is a path"),
        (("clear", "*", "--yes", "--older-than", "soon"), "is not a duration"),
        (("clear", "*", "--yes", "--larger-than", "big"), "is not a size"),
        (("clear",), "Missing argument"),
        (("list", "--kind", "models"), "is not one of"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(
    home: Path, arguments: tuple[str, ...], problem: str
) -> None:
    before = fingerprint(home)
    done = call(home, *arguments, "--local")
    assert (done.returncode, problem in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert fingerprint(home) == before


@pytest.mark.parametrize(("reply", "is_gone"), [("y\n", True), ("n\n", False)])
def test_on_a_terminal_clear_shows_the_plan_and_asks(home: Path, reply: str, is_gone: bool) -> None:
    controller, terminal = pty.openpty()
    running = subprocess.Popen(
        [*COMMAND, "clear", "org/one", "--local"],
        env={**os.environ, "HF_HOME": str(home)},
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    os.write(controller, reply.encode())
    output, _ = running.communicate(timeout=120)
    os.close(terminal)
    os.close(controller)
    assert "org/one" in output
    assert "1 to delete, would free 5.0 kB" in output
    assert ("1 deleted, freed 5.0 kB" in output) == is_gone
    assert (home / "hub" / "models--org--one").exists() != is_gone


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


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("pull", "org/one@", "--local"), "no revision after '@'"),
        (("list", "--cache-dir", "somewhere"), "add --local"),
    ],
)
def test_options_that_contradict_each_other_are_bad_usage(
    home: Path, arguments: tuple[str, ...], problem: str
) -> None:
    done = call(home, *arguments)
    assert (done.returncode, problem in done.stderr) == (2, True), done.stderr


def test_stats_counts_what_manifests_say(home: Path, runs_dir: Path) -> None:
    use = {"repo_id": "org/one", "kind": "model", "revision": A, "bytes": 5000, "hit": True}
    (runs_dir / "r1").mkdir()
    (runs_dir / "r1" / "manifest.json").write_text(json.dumps({"cached_models": [use]}))
    assert "1 runs: 1 hits saved 5.0 kB" in call(home, "stats").stdout
    assert answer(call(home, "stats", "--json"))["bytes_saved"] == 5000


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from ml_experiments.cli.cache_cli import cache; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"huggingface_hub", "rich", "modal", "torch", "httpx2"}


def test_names_that_no_terminal_should_see_are_escaped(home: Path) -> None:
    write_repo(home / "hub", "org/\x1b[31mred", {A: {"x": b"1"}})
    (home / "hub" / os.fsdecode(b"models--org--\xff") / "snapshots" / A).mkdir(parents=True)
    done = call(home, "list", "--local")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert r"'org/\x1b[31mred'" in done.stdout
    assert r"'org/\udcff'" in done.stdout
    assert "org/\x1b[31mred" in names(call(home, "list", "--local", "--json"))
