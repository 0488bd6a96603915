"""Which cached revisions a run is charged with: real downloads and loads, each in a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cache.usage.watch import CacheWatch
from tests.support.hub_cache import commit_of, write_repo
from tests.support.hub_server import HubServer

A = commit_of("a")

WATCH = """
import json, sys
from pathlib import Path
from ml_experiments.cache.usage.watch import CacheWatch
hub = sys.argv[1] + "/huggingface/hub"
with CacheWatch(sys.argv[1]) as watch:
{body}
print(json.dumps([used.to_dict() for used in watch.used()]))
"""


def uses(cache_dir: Path, hub: HubServer | None, body: str, **environment: str) -> Any:
    code = WATCH.format(body="\n".join(f"    {line}" for line in body.strip().splitlines()))
    variables = {**os.environ, **(hub.environment() if hub else {}), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache_dir)],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_download_is_no_hit_and_the_next_use_is(cache_dir: Path, hub: HubServer) -> None:
    repo = hub.add_repo("org/used", {"config.json": b"{}", "m.safetensors": b"w" * 100})
    body = """
from huggingface_hub import snapshot_download
Path(snapshot_download("org/used", cache_dir=hub), "config.json").read_text()
"""
    entry = {"repo_id": "org/used", "kind": "model", "revision": repo.commit, "bytes": 102}
    assert uses(cache_dir, hub, body) == [{**entry, "hit": False}]
    assert uses(cache_dir, hub, body) == [{**entry, "hit": True}]
    assert uses(cache_dir, None, body, HF_HUB_OFFLINE="1") == [{**entry, "hit": True}]


def test_a_new_revision_of_content_that_was_there_is_a_hit(cache_dir: Path, hub: HubServer) -> None:
    files = {"m.safetensors": b"w" * 100}
    hub.add_repo("org/again", {**files, "x": b"1"}, revisions={"v2": files})
    pull("org/again", cache_dir=cache_dir)
    body = """
from huggingface_hub import snapshot_download
Path(snapshot_download("org/again", cache_dir=hub, revision="v2"))
"""
    [use] = uses(cache_dir, hub, body)
    assert (use["hit"], use["bytes"]) == (True, 100)


def test_weights_alone_read_outside_python_are_seen(cache_dir: Path, hub: HubServer) -> None:
    pytest.importorskip("safetensors")
    content = _safetensors()
    repo = hub.add_repo("org/rust", {"m.safetensors": content})
    pull("org/rust", cache_dir=cache_dir)
    by_branch = """
from huggingface_hub import hf_hub_download
from safetensors import safe_open
with safe_open(hf_hub_download("org/rust", "m.safetensors", cache_dir=hub), "np") as file:
    file.get_tensor("x")
"""
    mapped = f"""
from safetensors import safe_open
kept = safe_open(hub + "/models--org--rust/snapshots/{repo.commit}/m.safetensors", "np")
kept = kept.__enter__()
"""
    for body in (by_branch, mapped):
        [use] = uses(cache_dir, hub, body)
        assert (use["repo_id"], use["revision"], use["hit"]) == ("org/rust", repo.commit, True)


def test_listing_the_cache_is_no_use_of_what_it_lists(cache_dir: Path) -> None:
    write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    body = """
from huggingface_hub import scan_cache_dir
from ml_experiments.cache.scan.scanning import scan
assert len(scan_cache_dir(hub).repos) == len(scan(sys.argv[1]).items) == 1
"""
    assert uses(cache_dir, None, body) == []


def test_what_other_processes_do_meanwhile_is_not_charged(cache_dir: Path) -> None:
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    with CacheWatch(cache_dir) as watch:
        subprocess.run(["cat", repo / "snapshots" / A / "x"], check=True, capture_output=True)
    assert watch.used() == ()


def test_only_the_time_of_the_block_counts(cache_dir: Path) -> None:
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    file = repo / "snapshots" / A / "x"
    file.read_bytes()
    with CacheWatch(cache_dir) as watch:
        pass
    file.read_bytes()
    assert watch.used() == ()
    with CacheWatch(cache_dir) as outer, CacheWatch(cache_dir) as inner:
        file.read_bytes()
    assert [use.revision for use in inner.used()] == [A]
    assert outer.used() == inner.used()


@pytest.mark.parametrize("spelling", [str, os.fsencode, Path])
def test_every_spelling_of_a_path_is_seen(cache_dir: Path, spelling: Any) -> None:
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    with CacheWatch(cache_dir) as watch:
        os.close(os.open(spelling(str(repo / "snapshots" / A / "x")), os.O_RDONLY))
    assert [use.revision for use in watch.used()] == [A]


def test_a_cache_folder_that_is_reached_by_a_link_is_watched_under_both_names(
    cache_dir: Path, tmp_path: Path
) -> None:
    # a volume may be mounted elsewhere and linked to; libraries open what HF_HOME says
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    linked = tmp_path / "linked"
    linked.symlink_to(cache_dir)
    file = repo.relative_to(cache_dir) / "snapshots" / A / "x"
    for folder in (cache_dir, linked):
        seen: list[str] = []
        with CacheWatch(linked, seen.append) as watch:
            (folder / file).read_bytes()
        assert [use.revision for use in watch.used()] == [A]
        assert seen == [repo.name]


def test_watching_a_large_cache_costs_little(cache_dir: Path) -> None:
    hub = cache_dir / "huggingface" / "hub"
    for number in range(300):
        write_repo(hub, f"org/m{number}", {commit_of(str(number)): {"x": b"1"}})
    file = hub / "models--org--m7" / "snapshots" / commit_of("7") / "x"
    costs = []
    for _ in range(5):
        started = time.process_time()
        with CacheWatch(cache_dir) as watch:
            file.read_bytes()
        assert len(watch.used()) == 1
        costs.append(time.process_time() - started)
    assert min(costs) < 0.05


def _safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + b"\0\0\0\0"
