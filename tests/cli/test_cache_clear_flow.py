"""`ml-experiments cache clear` on this machine's cache."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cache_command import COMMAND, A, B, answer, call, names
from tests.support.hub_cache import fingerprint, set_age, write_repo

pytestmark = pytest.mark.slow


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
        pytest.skip("making a file immutable takes root and a file system that has the flag")
    try:
        done = call(home, "clear", "org/*", "--local", "--yes")
    finally:
        subprocess.run(["chattr", "-i", blob], check=True)
    assert done.returncode == 1
    assert "failed: org/one can't be deleted, and nothing of it was" in done.stdout
    assert "1 deleted, freed 42 bytes" in done.stdout


def test_two_at_once_both_succeed_and_leave_no_folder(home: Path) -> None:
    for number in range(60):
        name = f"many/m{number}"
        write_repo(home / "hub", name, {A: {f"f{n}": b"%d" % n for n in range(20)}})
        (home / "hub" / ".locks" / f"models--many--m{number}").mkdir(parents=True)
    command = [*COMMAND, "clear", "many/*", "--yes", "--local", "--json"]
    environment = {**os.environ, "HF_HOME": str(home)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outcomes = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert [outcome["failed"] + outcome["kept"] for outcome in outcomes] == [[], []]
    assert sum(outcome["deleted"] for outcome in outcomes) == 60
    assert not [path for path in (home / "hub").iterdir() if "many" in path.name]
