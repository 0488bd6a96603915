from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download, get_hf_file_metadata, scan_cache_dir

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.pull import pulling
from ml_experiments.cache.pull.progress import PullProgress
from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.errors import CacheError
from tests.support.hub_cache import fingerprint, model_names, write_repo
from tests.support.hub_server import HubServer, use_endpoint
from tests.support.waiting import wait_until

MB = 1_000_000
TOKEN = "hf_a_token_of_some_length"


def test_a_pull_fills_the_cache_as_the_library_would(cache_dir: Path, hub: HubServer) -> None:
    files = {"config.json": b"{}", "unet/m.safetensors": b"w" * 1000}
    repo = hub.add_repo("org/pulled", files)
    outcome = pull("org/pulled", cache_dir=cache_dir)
    assert outcome.to_dict() == {
        "name": "org/pulled",
        "kind": "model",
        "revision": repo.commit,
        "path": str(cache_dir / "huggingface/hub/models--org--pulled/snapshots" / repo.commit),
        "files": 2,
        "bytes": 1002,
        "downloaded_files": 2,
        "downloaded_bytes": 1002,
    }
    assert {name: Path(outcome.path, name).read_bytes() for name in files} == files
    [found] = scan_cache_dir(cache_dir / "huggingface" / "hub").repos
    assert found.repo_id == "org/pulled"


def test_what_is_there_is_not_downloaded_again(cache_dir: Path, hub: HubServer) -> None:
    hub.add_repo("org/twice", {"a.json": b"{}", "b.safetensors": b"w" * 50})
    pull("org/twice", cache_dir=cache_dir)
    before = len(hub.requests)
    outcome = pull("org/twice", cache_dir=cache_dir)
    assert (outcome.downloaded_files, outcome.downloaded_bytes) == (0, 0)
    assert not [r for r in hub.requests[before:] if "/resolve/" in r.path]


def test_a_new_revision_downloads_only_what_changed(cache_dir: Path, hub: HubServer) -> None:
    files = {"a.json": b"{}", "b.safetensors": b"w" * 50}
    hub.add_repo("org/rev", files, revisions={"v2": {**files, "a.json": b"[1]"}})
    pull("org/rev", cache_dir=cache_dir)
    outcome = pull("org/rev", cache_dir=cache_dir, revision="v2")
    assert (outcome.files, outcome.downloaded_files, outcome.downloaded_bytes) == (2, 1, 3)


def test_include_and_exclude_choose_files(cache_dir: Path, hub: HubServer) -> None:
    hub.add_repo("org/part", {"a.json": b"{}", "b.json": b"[]", "c.safetensors": b"w" * 50})
    outcome = pull(
        "org/part",
        cache_dir=cache_dir,
        include=["*.json"],
        exclude=["b.*"],
    )
    assert sorted(p.name for p in Path(outcome.path).iterdir()) == ["a.json"]
    assert (outcome.files, outcome.bytes) == (1, 2)


def test_datasets_can_be_pulled(cache_dir: Path, hub: HubServer) -> None:
    hub.add_repo("org/rows", {"data.csv": b"a,b"}, kind="dataset")
    pull("org/rows", cache_dir=cache_dir, kind="dataset")
    assert [(i.name, i.kind) for i in scan(cache_dir).items] == [("org/rows", "dataset")]


def test_progress_grows_to_the_total(cache_dir: Path, hub: HubServer) -> None:
    hub.add_repo("org/live", {"a.json": b"{}", "b.safetensors": os.urandom(25 * MB)})
    seen: list[PullProgress] = []
    pull("org/live", cache_dir=cache_dir, on_progress=seen.append)
    done = [state.done_bytes for state in seen]
    assert len(done) > 2
    assert done == sorted(set(done))
    assert seen[-1] == PullProgress(25 * MB + 2, 25 * MB + 2)


def test_a_connection_that_breaks_is_resumed_in_the_middle_of_the_file(
    cache_dir: Path, hub: HubServer
) -> None:
    weights = os.urandom(25 * MB)
    hub.add_repo("org/broken", {"breaks.safetensors": weights})
    hub.break_after("breaks.safetensors", 12 * MB)
    before = len(hub.requests)
    outcome = pull("org/broken", cache_dir=cache_dir)
    assert Path(outcome.path, "breaks.safetensors").read_bytes() == weights
    ranges = [r.range for r in hub.requests[before:] if r.method == "GET" and r.range]
    assert ranges == [f"bytes={10 * 1024 * 1024}-"]


def test_files_that_were_complete_when_the_connection_was_lost_are_kept(
    cache_dir: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))
    hub.add_repo("org/lost", {"a.json": b"{}", "breaks.safetensors": b"w" * 3 * MB})
    hub.break_after("breaks.safetensors", MB, times=1000)
    with pytest.raises(CacheError) as caught:
        pull("org/lost", cache_dir=cache_dir)
    assert "the download of org/lost stopped: RemoteProtocolError" in str(caught.value)
    assert "the same command fetches the others" in str(caught.value)
    hub.mend("breaks.safetensors")
    outcome = pull("org/lost", cache_dir=cache_dir)
    assert (outcome.downloaded_files, outcome.downloaded_bytes) == (1, 3 * MB)


def test_two_pulls_at_once_download_once_and_both_succeed(cache_dir: Path, hub: HubServer) -> None:
    weights = b"w" * MB
    hub.add_repo("org/both", {"both.safetensors": weights})
    release = hub.stall_after("both.safetensors", 1000)
    blobs = cache_dir / "huggingface" / "hub" / "models--org--both" / "blobs"
    since = len(hub.requests)
    seen: list[PullProgress] = []
    command = [sys.executable, "-c", PULL, "org/both", cache_dir]
    with subprocess.Popen(command, env={**os.environ, **hub.environment()}) as other:
        wait_until(lambda: len(list(blobs.glob("*.incomplete"))) == 1, "the first download")
        threading.Timer(1, release.set).start()
        outcome = pull("org/both", cache_dir=cache_dir, on_progress=seen.append)
        assert other.wait(60) == 0
    downloads = [r for r in hub.requests[since:] if r.method == "GET" and "/resolve/" in r.path]
    assert len(downloads) == 1
    assert seen[-1] == PullProgress(MB, MB)
    assert Path(outcome.path, "both.safetensors").read_bytes() == weights


def test_a_push_during_a_pull_does_not_change_what_is_pulled(
    cache_dir: Path, hub: HubServer
) -> None:
    files = {"a.json": b"{}", "b.safetensors": b"w" * MB}
    before = hub.add_repo("org/pushed", files).commit
    pushed: list[str] = []

    def on_progress(_: PullProgress) -> None:
        if not pushed:
            new = {**files, "a.json": b"[1]"}
            again = hub.add_repo("org/pushed", new, revisions={before: files})
            again.commits[before] = again.commits[again.refs[before]]
            pushed.append(again.commit)

    outcome = pull("org/pushed", cache_dir=cache_dir, on_progress=on_progress)
    assert pushed != [before]
    assert outcome.revision == before
    assert Path(outcome.path).parents[1].joinpath("refs", "main").read_text() == before
    assert Path(outcome.path, "a.json").read_bytes() == b"{}"


def test_a_hub_that_no_longer_serves_the_files_after_it_listed_them_is_an_error(
    cache_dir: Path, hub_dir: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.json": b"{}", "b.safetensors": b"w" * 50}
    commit = hub.add_repo("org/vanishes", files).commit
    # a snapshot without the list of files that huggingface_hub keeps beside it
    repo = write_repo(hub_dir, "org/vanishes", {commit: {"a.json": b"{}"}}, refs={})

    def ask_and_close(*arguments: object, **more: object) -> object:
        metadata = get_hf_file_metadata(*arguments, **more)
        hub.add_repo("org/vanishes", files, private=True)
        return metadata

    monkeypatch.setattr(pulling, "get_hf_file_metadata", ask_and_close)
    with pytest.raises(CacheError, match="of org/vanishes stopped: the Hub no longer serves it"):
        pull("org/vanishes", cache_dir=cache_dir)
    assert not (repo / "refs" / "main").exists()


@pytest.mark.parametrize(("is_disabled", "problem"), [(False, "org/xet"), (True, "hf_xet")])
def test_a_file_that_neither_xet_nor_http_can_bring_is_an_error(
    cache_dir: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    is_disabled: bool,
    problem: str,
) -> None:
    hub.add_repo("org/xet", {"m.safetensors": b"w" * MB}, on_xet=True)  # nothing here speaks Xet
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", is_disabled)
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", MB - 1)
    with pytest.raises(CacheError, match=problem):
        pull("org/xet", cache_dir=cache_dir)


PULL = """
import sys
from ml_experiments.cache.pull.pulling import pull
pull(sys.argv[1], cache_dir=sys.argv[2])
"""


def test_a_killed_pull_goes_on_with_the_files_that_it_had_not_finished(
    cache_dir: Path, hub: HubServer
) -> None:
    hub.add_repo("org/killed", {"done.safetensors": b"d" * MB, "stalls.safetensors": b"s" * MB})
    release = hub.stall_after("stalls.safetensors", 1000)
    blobs = cache_dir / "huggingface" / "hub" / "models--org--killed" / "blobs"
    command = [sys.executable, "-c", PULL, "org/killed", cache_dir]
    with subprocess.Popen(command, env={**os.environ, **hub.environment()}) as running:
        deadline = time.monotonic() + 60
        while not [p for p in blobs.glob("*") if p.suffix != ".incomplete"] or not [
            *blobs.glob("*.incomplete")
        ]:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.02)
        assert "is being downloaded" in plan_deletion(cache_dir).kept[0].why
        running.send_signal(signal.SIGKILL)
    release.set()
    assert [lo.reason for lo in scan(cache_dir).leftovers if lo.reason != "lock"] == ["incomplete"]
    outcome = pull("org/killed", cache_dir=cache_dir)
    assert (outcome.downloaded_files, outcome.downloaded_bytes) == (1, MB)
    assert Path(outcome.path, "stalls.safetensors").read_bytes() == b"s" * MB


def test_what_can_not_be_pulled_is_an_error_that_says_what_to_do(
    cache_dir: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a.json": b"{}", "b.safetensors": b"w"}
    hub.add_repo("org/gated", files, gated=True, allowed_tokens=frozenset({TOKEN}))
    hub.add_repo("org/private", files, private=True, allowed_tokens=frozenset({TOKEN}))
    hub.add_repo("org/open", files)
    hub.add_token("hf_valid_but_not_allowed")
    for name, arguments, message in (
        ("org/gated", {}, "is gated: accept its terms at https://huggingface.co/org/gated"),
        ("org/gated", {"token": "hf_valid_but_not_allowed"}, "is gated: accept its terms"),
        ("org/missing", {}, "there is no model 'org/missing' on the Hub, or it is private"),
        ("org/missing", {"token": TOKEN}, "there is no model 'org/missing'"),
        ("org/private", {}, "there is no model 'org/private' on the Hub, or it is private"),
        ("org/open", {"token": "hf_wrong_token"}, "rejected the token"),
        ("org/open", {"revision": "v9"}, "has no revision 'v9'"),
        ("org/open", {"include": ["*.gguf"]}, "no file of org/open matches"),
        ("a/b/c", {}, "is not a name on the Hub"),
        ("../../etc", {}, "is not a name on the Hub"),
        ("", {}, "is not a name on the Hub"),
        ("org/open", {"revision": ""}, "there is no revision"),
    ):
        started = len(hub.requests)
        token = arguments.pop("token", None)
        monkeypatch.setenv("HF_TOKEN", token or "")
        with pytest.raises(CacheError, match=message) as caught:
            pull(name, cache_dir=cache_dir, **arguments)
        assert TOKEN not in str(caught.value)
        assert str(token) not in str(caught.value)
        downloads = [
            r for r in hub.requests[started:] if r.method == "GET" and "/resolve/" in r.path
        ]
        assert downloads == []
        assert list(cache_dir.iterdir()) == [], "nothing was left behind"


@pytest.mark.parametrize("revision", ["../../../evil", "/etc/cron.d/evil", "a\\..\\b", "v*"])
def test_a_revision_that_leads_elsewhere_is_never_asked_for(
    cache_dir: Path, hub: HubServer, revision: str
) -> None:
    # a pull writes a file of this name under refs/; a mirror may know any revision
    hub.add_repo("org/open", {"a.json": b"{}"}, revisions={revision: {"a.json": b"[1]"}})
    before = len(hub.requests)
    with pytest.raises(CacheError, match="is not a commit hash, branch or tag"):
        pull("org/open", cache_dir=cache_dir, revision=revision)
    assert len(hub.requests) == before
    assert list(cache_dir.iterdir()) == []


def test_a_token_with_access_opens_gated_and_private_repositories(
    cache_dir: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name, flags in (("org/g", {"gated": True}), ("org/p", {"private": True})):
        hub.add_repo(name, {"a.json": b"{}"}, allowed_tokens=frozenset({TOKEN}), **flags)
        pull(name, cache_dir=cache_dir)
    assert model_names(cache_dir) == ["org/g", "org/p"]


def test_too_little_space_is_an_error_before_anything_is_downloaded(
    cache_dir: Path, hub: HubServer
) -> None:
    hub.add_repo("org/huge", {"a.safetensors": b"w"}, declared_sizes={"a.safetensors": 10**15})
    before = len(hub.requests)
    with pytest.raises(CacheError, match=r"needs 1\.0 PB more and .* has .* free; make room"):
        pull("org/huge", cache_dir=cache_dir)
    assert not [r for r in hub.requests[before:] if r.method == "GET" and "/resolve/" in r.path]


def test_a_hub_that_can_not_be_reached_is_an_error(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_endpoint("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(CacheError, match=r"the Hub can't be reached: .* check the network"):
        pull("org/name", cache_dir=cache_dir)


def test_a_hub_folder_that_is_a_link_is_not_written_through(
    cache_dir: Path, hub: HubServer, tmp_path: Path
) -> None:
    hub.add_repo("org/link", {"a.json": b"{}"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (cache_dir / "huggingface").mkdir()
    (cache_dir / "huggingface" / "hub").symlink_to(elsewhere)
    with pytest.raises(CacheError, match="symbolic link"):
        pull("org/link", cache_dir=cache_dir)
    assert fingerprint(elsewhere) == {}
