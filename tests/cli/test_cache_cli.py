"""`ml-experiments cache`, as a whole process, on this machine's cache."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import shutil
import subprocess
import sys
import threading
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
    set_age(write_repo(home / "hub", "org/zebra", {A: {"x": b"z" * 9000}}), days=30)
    sizes = names(call(home, "list", "--sort", "size", "--local", "--json"))
    assert sizes == ["org/zebra", "org/one", "org/rows", "org/two"]
    used = names(call(home, "list", "--sort", "used", "--local", "--json"))
    assert used[-2:] == ["org/zebra", "org/two"]


def test_a_list_of_some_names_tells_only_of_them(home: Path) -> None:
    (home / "hub" / "notes.txt").write_text("mine")
    (home / "hub" / "models--org--broken").mkdir()
    (home / "hub" / "models--org--broken" / "x").write_text("mine")
    partial = home / "hub" / "models--org--two" / "blobs" / f"{'0' * 64}.incomplete"
    partial.write_bytes(b"half")
    everything = call(home, "list", "--local").stdout
    assert "interrupted downloads: 1, 4 bytes" in everything
    assert everything.count("not touched: ") == 2
    one = call(home, "list", "*/one", "--local").stdout
    assert "interrupted" not in one
    assert "not touched" not in one
    some = call(home, "list", "*/[bt]*", "--kind", "model", "--local").stdout
    assert "interrupted downloads: 1, 4 bytes" in some
    assert some.count("not touched: ") == 1
    assert "not touched: huggingface/hub/models--org--broken is damaged" in some
    other = call(home, "list", "--kind", "dataset", "--local").stdout
    assert "interrupted" not in other
    assert "not touched" not in other


def test_a_name_in_two_parts_of_the_cache_is_told_apart(home: Path) -> None:
    write_repo(home / "transformers", "org/one", {A: {"config.json": b"{}"}})
    rows = [line.split()[:4] for line in call(home, "list", "*one", "--local").stdout.splitlines()]
    assert rows[1][:2] == ["org/one", "model"]
    assert ["org/one", "model", "in", "transformers"] in rows
    plan = call(home, "clear", "*one", "--local", "--dry-run").stdout
    assert "model in transformers" in plan


def test_a_folder_that_is_not_there_is_named(home: Path, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    listed = call(home, "list", "--local", "--cache-dir", missing).stdout
    assert f"0 bytes in {missing}, which is not there" in listed
    cleared = call(home, "clear", "*", "--local", "--cache-dir", missing, "--yes").stdout
    assert f"there is no folder {missing}" in cleared
    verified = call(home, "verify", "--local", "--cache-dir", missing).stdout
    assert "there is nothing to check" in verified


def test_every_command_takes_another_folder(home: Path, tmp_path: Path, hub: HubServer) -> None:
    hub.add_repo("org/there", {"a.json": b"{}"})
    there = ("--local", "--cache-dir", str(tmp_path / "there"))
    before = fingerprint(home)
    pulled = answer(call(home, "pull", "org/there", *there, "--json", hub=hub))
    assert pulled["path"].startswith(str(tmp_path / "there" / "huggingface" / "hub"))
    assert names(call(home, "list", *there, "--json")) == ["org/there"]
    assert len(answer(call(home, "show", "org/there", *there, "--json"))["items"]) == 1
    assert answer(call(home, "verify", *there, "--json"))["checked"] == 1
    cleared = answer(call(home, "clear", "*", *there, "--yes", "--json"))
    assert cleared["names"] == ["org/there"]
    assert fingerprint(home) == before


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


def test_show_of_a_revision_shows_that_one(home: Path) -> None:
    write_repo(home / "hub", "org/one", {B: {"other.json": b"[]"}}, refs={"v2": B})
    for name in ("org/one@v2", f"org/one@{B[:5]}"):
        [item] = answer(call(home, "show", name, "--local", "--json"))["items"]
        assert [revision["commit"] for revision in item["revisions"]] == [B]
        assert [file["path"] for file in item["contents"]] == ["other.json"]
    done = call(home, "show", "org/one@v3", "--local")
    assert done.returncode == 2
    assert "nothing in the cache is named 'org/one@v3'" in done.stderr


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


def test_nothing_to_delete_is_no_dry_run_unless_one_was_asked_for(home: Path) -> None:
    done = call(home, "clear", "org/onee", "--local", "--yes")
    assert done.returncode == 0, done.stderr
    assert "nothing in the cache matches 'org/onee' (did you mean 'org/one'?)" in done.stdout
    assert "0 deleted, freed 0 bytes" in done.stdout
    for options, is_dry in ((("--yes",), False), (("--dry-run",), True), ((), True)):
        command = ("clear", "org/onee", "--local", "--json", *options)
        assert answer(call(home, *command))["dry_run"] is is_dry


def test_a_plan_names_interrupted_downloads_and_counts_stale_locks(home: Path) -> None:
    blobs = home / "hub" / "models--org--half" / "blobs"
    (home / "hub" / "models--org--half" / "snapshots" / A).mkdir(parents=True)
    blobs.mkdir()
    for digit in "01":
        (blobs / f"{digit * 64}.incomplete").write_bytes(b"x" * 2000)
    locks = home / "hub" / ".locks" / "models--org--gone"
    locks.mkdir(parents=True)
    (locks / "a.lock").touch()
    set_age(home / "hub", days=1)
    command = ("clear", "org/[hg]*", "--keep-latest", "--local")
    for options in (("--dry-run",), ("--yes",)):
        shown = call(home, *command, *options).stdout
        assert "interrupted download of org/half: 4.0 kB" in shown
        assert "stale locks: 1" in shown
        assert "free 4.0 kB" in shown or "freed 4.0 kB" in shown


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
        (("clear", "*", "--yes", "--older-than", "0d"), "must be above 0"),
        (("pull", "org/one@../../x"), "is not a commit hash, branch or tag"),
        (("pull", "../x"), "is not a name on the Hub"),
        (("pull", ""), "is not a name on the Hub"),
        (("verify", "org/one@v3"), "nothing in the cache matches"),
        (("verify", ""), "the pattern is empty"),
        (("list", "/etc"), "it is a path"),
        (("show", "../x"), "nothing in the cache is named"),
        (("list", "--cache-dir", ""), "the cache folder is an empty text"),
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


def test_what_joins_while_clear_asks_stays(home: Path) -> None:
    controller, terminal = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "clear", "org/*", "--local"],
        env={**os.environ, "HF_HOME": str(home)},
        stdin=terminal,
        stdout=subprocess.PIPE,
    ) as running:
        assert running.stdout is not None
        shown = b""
        while b"Delete this?" not in shown:
            shown += os.read(running.stdout.fileno(), 1000)
        write_repo(home / "hub", "org/one", {B: {"new.json": b"[]"}}, refs={})
        write_repo(home / "hub", "org/three", {A: {"new.json": b"[]"}})
        os.write(controller, b"y\n")
        output = running.stdout.read().decode()
    os.close(terminal)
    os.close(controller)
    assert "1 deleted" in output
    assert output.count("was not in the plan that was confirmed, or has changed since") == 2
    assert names(call(home, "list", "--kind", "model", "--local", "--json")) == [
        "org/one",
        "org/three",
    ]


def test_what_could_not_be_deleted_is_named_and_exit_code_1(home: Path) -> None:
    blob = (home / "hub" / "models--org--one" / "snapshots" / A / "config.json").resolve()
    made = shutil.which("chattr") and subprocess.run(["chattr", "+i", blob], check=False)
    if not made or made.returncode:
        pytest.skip("making a file immutable takes root and a file system that knows it")
    try:
        done = call(home, "clear", "org/*", "--local", "--yes")
    finally:
        subprocess.run(["chattr", "-i", blob], check=True)
    assert done.returncode == 1
    assert "failed: org/one can't be deleted, and nothing of it was" in done.stdout
    assert "1 deleted, freed 42 bytes" in done.stdout


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
