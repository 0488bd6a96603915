"""`ml-experiments cache list|show` on this machine's cache, and what all commands share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cache_command import A, B, answer, call, names
from tests.support.hub_cache import fingerprint, set_age, write_repo
from tests.support.hub_server import HubServer

pytestmark = pytest.mark.slow


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


def test_an_organisation_alone_suggests_all_of_it(home: Path) -> None:
    hint = "(did you mean 'org/*'?)"
    assert f"nothing matches {hint}" in call(home, "list", "org", "--local").stdout
    assert hint in call(home, "clear", "org/", "--local").stderr
    assert hint in call(home, "clear", "Org", "--local", "--yes").stdout.replace("Org", "org")
    assert hint in call(home, "verify", "org", "--local").stderr


def test_damage_is_listed_shown_and_counted_when_removed(home: Path) -> None:
    ref = home / "hub" / "models--org--two" / "refs" / "main"
    ref.write_text("f" * 40)
    set_age(ref, days=1)
    damage = "refs/main names the revision ffffffff, which is not here"
    listed = call(home, "list", "--local").stdout
    assert f"damaged: org/two: {damage}; `verify --repair` removes it" in listed
    assert f"damaged: {damage}" in call(home, "show", "org/two", "--local").stdout
    verified = call(home, "verify", "org/two", "--local")
    assert (verified.returncode, "1 file, 2 bytes checked; 1 wrong\n" in verified.stdout) == (
        1,
        True,
    )
    repaired = call(home, "verify", "org/two", "--repair", "--local").stdout
    assert "1 file, 2 bytes checked; 1 wrong, 1 removed\n" in repaired


def test_show_of_a_name_that_is_not_there_suggests_one(home: Path) -> None:
    done = call(home, "show", "org/onee", "--local")
    assert done.returncode == 2
    assert "did you mean 'org/one'?" in done.stderr
    assert "Traceback" not in done.stderr


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
        (("list", "--cache-dir", ""), "the cache folder is an empty string"),
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


def test_without_a_token_the_commands_name_their_own_way_to_do_without(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MODAL_TOKEN_ID", raising=False)
    monkeypatch.setenv("MODAL_CONFIG_PATH", str(tmp_path / "none.toml"))
    done = call(home, "list")
    assert done.returncode == 2
    assert "or use this machine's own cache: --local" in done.stderr
    assert "--backend" not in done.stderr


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from ml_experiments.cli.cache import cache; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"huggingface_hub", "rich", "modal", "torch", "httpx2"}


def test_names_that_no_terminal_should_see_are_escaped(home: Path) -> None:
    write_repo(home / "hub", "org/\x1b[31mred", {A: {"x": b"1"}})
    (home / "hub" / os.fsdecode(b"models--org--\xff") / "snapshots" / A).mkdir(parents=True)
    done = call(home, "list", "--local")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    assert r"org/\x1b[31mred " in done.stdout
    assert r"org/\udcff " in done.stdout
    assert "org/\x1b[31mred" in names(call(home, "list", "--local", "--json"))
