"""Whatever lies in a cache folder: no operation waits for ever, fails, or leaves the folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_experiments.cache.layout import KINDS
from ml_experiments.cache.operations import OPERATIONS
from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cli.cache_report import (
    print_deletion,
    print_item,
    print_list,
    print_verification,
)
from ml_experiments.errors import CacheError
from tests.support.hub_cache import commit_of, model_names, set_age, write_repo
from tests.support.hub_server import HubServer

A, B = commit_of("a"), commit_of("b")
LIMIT_S = 10
HUB = "huggingface/hub"
REPO = f"{HUB}/models--org--name"
FOLDERS = st.sampled_from(
    [
        *("", "huggingface", HUB, REPO, f"{REPO}/refs", f"{REPO}/refs/pr", f"{REPO}/blobs"),
        *(f"{REPO}/snapshots", f"{REPO}/snapshots/{A}", f"{REPO}/snapshots/{A}/unet"),
        *(f"{REPO}/trees", f"{HUB}/.locks", f"{HUB}/.locks/models--org--name", f"{HUB}/blobs"),
        *("huggingface/transformers", "huggingface/transformers/models--org--old/snapshots/x"),
        *("huggingface/datasets", "huggingface/datasets/org___rows/main/1.0.0"),
        *("huggingface/.ml-experiments/uses/models--org--name", "torch/hub/checkpoints"),
        "huggingface/.ml-experiments/leases",
    ]
)
NAMES = st.sampled_from(
    [
        *(b"main", b"v2", b"x", b"refs", b"snapshots", b"blobs", A.encode(), b"0" * 40),
        *(b"models--org--name", b"models--\xff--\x1b[2J", b"datasets--", b"a\nb", b"\xff"),
        *(b"1" * 64 + b".incomplete", b"etag.lock", b"dataset_info.json", b"net-12345678.pth"),
        *(f"{A}.json".encode(), b"run.12345678.json", b".huggingface-shared-blobs", b"n" * 255),
    ]
)
NODES = st.one_of(
    st.sampled_from([b"", A.encode(), f"{A}\n".encode(), B.encode(), b"\x81", b"1\n", b"[" * 9000])
    | st.sampled_from([b'{"last_used": 1e999}', b'{"last_used": ' + b"9" * 5000 + b"}", b"null"])
    | st.sampled_from(
        [b"x" * 2_000_000, b'{"run_id": 1, "holder": [], "since": NaN, "folders": 3}']
    )
    | st.binary(max_size=50),
    st.tuples(
        st.just("link"),
        st.sampled_from(
            [
                ".",
                "..",
                "x",
                "main",
                f"../../blobs/{'0' * 40}",
                "../../../../mine",
                "/dev/zero",
                "/",
            ]
        ),
    ),
    st.sampled_from(["FIFO", "socket", "folder", "deep"]),
)
TREES = st.lists(st.tuples(FOLDERS, NAMES, NODES), max_size=12)


def plant(root: Path, tree: list[tuple[str, bytes, Any]]) -> None:
    for folder, name, node in tree:
        parent = root / folder
        with contextlib.suppress(OSError):  # something of the tree is in the way
            parent.mkdir(parents=True, exist_ok=True)
            if parent.resolve() == parent:
                plant_node(parent / os.fsdecode(name), node)


def plant_node(path: Path, node: Any) -> None:
    match node:
        case bytes():
            with path.open("xb") as file:
                file.write(node)
        case ("link", target):
            path.symlink_to(target)
        case "FIFO":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as opened, contextlib.chdir(path.parent):
                opened.bind(path.name)
        case "folder":
            path.mkdir()
        case "deep":  # deeper than a recursion reaches
            with contextlib.chdir(path.parent):
                for _ in range(1200):
                    Path("d").mkdir()
                    os.chdir("d")
                Path("bottom").touch()


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Let a block that waits for something end in an error."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"not done after {LIMIT_S} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def outcome_of(root: Path, operation: str, **arguments: Any) -> dict[str, Any] | None:
    try:
        with time_limit():
            outcome = OPERATIONS[operation](root, **arguments)
    except CacheError:
        return None
    json.dumps(outcome, allow_nan=False)
    return outcome


def check_all_operations(root: Path) -> None:
    listed = outcome_of(root, "list")
    assert listed is not None
    print_list(listed)
    for item in listed["items"]:
        shown = outcome_of(root, "show", name=item["name"])
        assert shown is not None
        print_item(shown)
    for repair in (False, True):
        verified = outcome_of(root, "verify", repair=repair)
        assert verified is not None
        print_verification(verified)
    for force in (False, True):
        cleared = outcome_of(root, "clear", force=force, kinds=KINDS)
        assert cleared is not None
        print_deletion(cleared)
    assert cleared["failed"] == []
    left = outcome_of(root, "list")
    assert left is not None
    kept = {entry["name"].partition("@")[0] for entry in cleared["kept"]}
    assert {item["name"] for item in left["items"]} <= kept


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(TREES, st.booleans())
def test_any_tree_is_listed_verified_and_cleared(
    tree: list[tuple[str, bytes, Any]], with_repo: bool
) -> None:
    folder = tempfile.mkdtemp()
    try:
        mine = Path(folder, "mine")
        mine.write_text("mine")
        root = Path(folder, "cache")
        root.mkdir()
        if with_repo:
            write_repo(root / HUB, "org/name", {A: {"x": b"1"}, B: {"x": b"22"}})
        plant(root, tree)
        for parent, folders, names in os.walk(root):
            for name in (*folders, *names):
                os.utime(Path(parent, name), (0, 0), follow_symlinks=False)
        check_all_operations(root)
        assert mine.read_text() == "mine"
    finally:
        subprocess.run(["rm", "-rf", folder], check=True)  # shutil's can't reach the deepest


@pytest.mark.parametrize("is_alone", [False, True])
@pytest.mark.parametrize(
    "plant_ref",
    [
        lambda ref: os.mkfifo(ref),
        lambda ref: ref.symlink_to("odd"),
        lambda ref: ref.write_bytes(b"\x81"),
        lambda ref: ref.write_text(f"{A}\n"),
        lambda ref: ref.write_text(commit_of("not here")),
        lambda ref: ref.write_text(""),
        lambda ref: ref.write_bytes(b"a" * 50_000_000),
    ],
    ids=["FIFO", "loop", "not UTF-8", "newline", "no snapshot", "empty", "huge"],
)
def test_an_odd_ref_is_damage_that_verify_mends_and_that_clear_takes_along(
    cache_dir: Path, hub_dir: Path, plant_ref: Any, is_alone: bool
) -> None:
    repo = write_repo(hub_dir, "org/name", {A: {"x": b"1"}}, refs={} if is_alone else None)
    (repo / "refs").mkdir(exist_ok=True)
    plant_ref(repo / "refs" / "odd")
    set_age(repo, days=1)
    with time_limit():
        [item] = OPERATIONS["list"](cache_dir)["items"]
        assert [flaw["path"] for flaw in item["damage"]] == ["refs/odd"]
        assert OPERATIONS["show"](cache_dir, "org/name")["items"][0]["damage"] == item["damage"]
        [problem] = OPERATIONS["verify"](cache_dir, "org/name")["problems"]
        assert problem["what"] == item["damage"][0]["what"]
        [problem] = OPERATIONS["verify"](cache_dir, repair=True)["problems"]
        assert problem["repaired"]
        assert OPERATIONS["verify"](cache_dir)["problems"] == []
        assert OPERATIONS["list"](cache_dir)["items"][0]["damage"] == []
        plant_ref(repo / "refs" / "odd")
        assert OPERATIONS["clear"](cache_dir, "org/name", force=True)["names"] == ["org/name"]
    assert not repo.exists()


def test_a_ref_that_a_download_may_just_have_written_is_not_repaired(
    cache_dir: Path, hub_dir: Path
) -> None:
    repo = write_repo(hub_dir, "org/name", {A: {"x": b"1"}}, refs={"main": B})
    [problem] = OPERATIONS["verify"](cache_dir, repair=True)["problems"]
    assert problem["why_not_repaired"] == "its download may be going on"
    assert (repo / "refs" / "main").read_text() == B


@pytest.mark.parametrize(
    "unreadable", ["hub", "repo", "refs", "blobs", "snapshots", f"snapshots/{A}"]
)
def test_a_folder_that_cannot_be_read_is_named_and_the_rest_goes_on(
    cache_dir: Path, hub_dir: Path, unreadable: str
) -> None:
    repo = write_repo(hub_dir, "org/name", {A: {"x": b"1"}})
    write_repo(hub_dir, "org/other", {B: {"x": b"22"}})
    folder = {"hub": hub_dir, "repo": repo}.get(unreadable, repo / unreadable)
    folder.chmod(0)
    try:
        command = [sys.executable, "-c", ALL_OPERATIONS, str(cache_dir)]
        if os.geteuid() == 0:
            if shutil.which("setpriv") is None:
                pytest.skip("root can read anything; without setpriv it can't give that up")
            command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        folder.chmod(0o755)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["names"] == ([] if unreadable == "hub" else ["org/other"])
    assert (repo / "snapshots" / A / "x").read_bytes() == b"1"


ALL_OPERATIONS = """
import json, sys
from ml_experiments.cache.operations import OPERATIONS
listed = OPERATIONS["list"](sys.argv[1])
for item in listed["items"]:
    OPERATIONS["show"](sys.argv[1], item["name"])
OPERATIONS["verify"](sys.argv[1])
OPERATIONS["verify"](sys.argv[1], repair=True)
outcome = OPERATIONS["clear"](sys.argv[1], force=True)
assert outcome["failed"] == [], outcome
print(json.dumps(outcome))
"""


@pytest.mark.parametrize("place", ["blobs", "snapshots"])
@pytest.mark.parametrize("kind", ["FIFO", "folder"])
def test_a_pull_names_what_is_in_its_way(
    cache_dir: Path, hub_dir: Path, hub: HubServer, place: str, kind: str
) -> None:
    commit = hub.add_repo("org/odd", {"m.safetensors": b"w" * 10}).commit
    pulled = Path(pull("org/odd", cache_dir=cache_dir).path, "m.safetensors")
    odd = pulled.resolve() if place == "blobs" else pulled
    odd.unlink()
    os.mkfifo(odd) if kind == "FIFO" else odd.mkdir()
    with time_limit(), pytest.raises(CacheError, match=f"{odd} is in the way"):
        pull("org/odd", cache_dir=cache_dir)
    assert commit in str(pulled)


def test_a_pull_replaces_an_odd_ref(cache_dir: Path, hub_dir: Path, hub: HubServer) -> None:
    commit = hub.add_repo("org/ref", {"a.json": b"{}"}).commit
    refs = hub_dir / "models--org--ref" / "refs"
    refs.mkdir(parents=True)
    os.mkfifo(refs / "main")
    with time_limit():
        pull("org/ref", cache_dir=cache_dir)
    assert (refs / "main").read_text() == commit
    assert model_names(cache_dir) == ["org/ref"]
