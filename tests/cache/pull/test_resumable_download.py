"""Pulls that go on in the middle of a file: one chunk of huggingface_hub's is 10 MiB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, file_download

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.pull.progress import PullProgress
from ml_experiments.cache.pull.pulling import PullOutcome, pull
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.verification import verify
from ml_experiments.errors import CacheError
from tests.support.held_files import LOCK, held_by_process
from tests.support.hub_cache import etag_of, set_age
from tests.support.hub_server import HubRequest, HubServer
from tests.support.waiting import wait_until

MB = 1_000_000
CHUNK = 10 * 1024 * 1024
TOKEN = "hf_a_token_of_some_length"
# 20 MiB of it are on disk when a connection breaks after 22 MB
WEIGHTS = os.urandom(25 * MB)
NAME = "weights.safetensors"
FILES = {NAME: WEIGHTS, "config.json": b"{}"}
BLOB = etag_of(NAME, WEIGHTS)


@pytest.fixture(autouse=True)
def _retries_without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def repo(cache_dir: Path) -> Path:
    """The folder in the cache of org/large."""
    return cache_dir / "huggingface" / "hub" / "models--org--large"


def downloads(hub: HubServer, since: int, name: str = NAME) -> list[HubRequest]:
    return [r for r in hub.requests[since:] if r.method == "GET" and r.path.endswith(f"/{name}")]


def ranges(hub: HubServer, since: int) -> list[str | None]:
    return [r.range for r in downloads(hub, since)]


def leave_partial(repo: Path, content: bytes) -> Path:
    partial = repo / "blobs" / f"{BLOB}.incomplete"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content)
    return partial


def interrupt(hub: HubServer, cache_dir: Path, **arguments: Any) -> None:
    """Lose the connection for good in the middle of a pull of org/large."""
    hub.break_after(NAME, 22 * MB, times=1000)
    with pytest.raises(CacheError, match="the download of org/large stopped"):
        pull("org/large", cache_dir=cache_dir, **{**hub.anonymous, **arguments})
    hub.mend(NAME)


def assert_complete(outcome: PullOutcome, repo: Path) -> None:
    assert Path(outcome.path, NAME).read_bytes() == WEIGHTS
    assert Path(outcome.path, "config.json").read_bytes() == b"{}"
    assert sorted(p.name for p in (repo / "blobs").iterdir()) == sorted(
        [BLOB, etag_of("config.json", b"{}")]
    )


PULL = """
import sys
from ml_experiments.cache.pull.pulling import pull
pull("org/large", cache_dir=sys.argv[1], endpoint=sys.argv[2])
"""


def start_pull(cache_dir: Path, hub: HubServer) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PULL, str(cache_dir), hub.endpoint]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_pull_goes_on_in_the_middle_of_the_file(
    cache_dir: Path, repo: Path, hub: HubServer, how: signal.Signals
) -> None:
    weights = os.urandom(60 * MB)
    files = {NAME: weights, "config.json": b"{}"}
    commit = hub.add_repo("org/large", files).commit
    release = hub.stall_after(NAME, 22 * MB)
    partial = repo / "blobs" / f"{etag_of(NAME, weights)}.incomplete"
    with start_pull(cache_dir, hub) as running:
        wait_until(
            lambda: partial.exists() and partial.stat().st_size == 2 * CHUNK, "two chunks on disk"
        )
        assert "is being downloaded" in plan_deletion(cache_dir).kept[0].why
        running.send_signal(how)
        if how == signal.SIGINT:
            time.sleep(0.5)  # it ends where the next chunk would begin
        release.set()
        running.wait(30)
    found = scan(cache_dir)
    assert [lo.path for lo in found.leftovers if lo.reason == "incomplete"] == [partial]
    assert [item.name for item in found.items] == ["org/large"]
    assert found.unrecognised == ()

    since = len(hub.requests)
    seen: list[PullProgress] = []
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous, on_progress=seen.append)
    assert ranges(hub, since) == [f"bytes={2 * CHUNK}-"]
    assert (outcome.downloaded_files, outcome.downloaded_bytes) == (2, 60 * MB + 2 - 2 * CHUNK)
    assert seen[0] == PullProgress(2 * CHUNK, 60 * MB + 2)
    assert seen[-1] == PullProgress(60 * MB + 2, 60 * MB + 2)
    assert Path(outcome.path, NAME).read_bytes() == weights
    assert outcome.revision == commit
    assert not partial.exists()


def test_what_arrived_before_a_connection_is_lost_for_good_is_kept(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    hub.break_after(NAME, 22 * MB, times=1000)
    with pytest.raises(CacheError) as caught:
        pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert "the download of org/large stopped: RemoteProtocolError" in str(caught.value)
    assert "what has arrived is kept" in str(caught.value)
    assert (repo / "blobs" / f"{BLOB}.incomplete").read_bytes() == WEIGHTS[: 2 * CHUNK]
    hub.mend(NAME)
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert ranges(hub, since) == [f"bytes={2 * CHUNK}-"]
    assert_complete(outcome, repo)


def test_a_file_of_git_itself_is_resumed_too(cache_dir: Path, hub: HubServer) -> None:
    text = os.urandom(25 * MB)
    hub.add_repo("org/text", {"rows.csv": text}, kind="dataset")
    hub.break_after("rows.csv", 22 * MB, times=1000)
    with pytest.raises(CacheError, match="stopped"):
        pull("org/text", cache_dir=cache_dir, **hub.anonymous, kind="dataset")
    hub.mend("rows.csv")
    outcome = pull("org/text", cache_dir=cache_dir, **hub.anonymous, kind="dataset")
    assert outcome.downloaded_bytes == 25 * MB - 2 * CHUNK
    assert Path(outcome.path, "rows.csv").read_bytes() == text


def test_a_file_that_was_complete_but_for_its_name_is_not_downloaded_again(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    leave_partial(repo, WEIGHTS)
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert ranges(hub, since) == []
    assert outcome.downloaded_bytes == 2
    assert_complete(outcome, repo)


@pytest.mark.parametrize(
    ("content", "asked", "arrived"),
    [
        (b"x" * CHUNK, [f"bytes={CHUNK}-", None], 2 * 25 * MB - CHUNK),
        (b"x" * 26 * MB, [None], 25 * MB),
        (b"", [None], 25 * MB),
    ],
    ids=["wrong", "too long", "empty"],
)
def test_a_partial_file_that_is_of_no_use_is_fetched_anew(
    cache_dir: Path,
    repo: Path,
    hub: HubServer,
    content: bytes,
    asked: list[str | None],
    arrived: int,
) -> None:
    hub.add_repo("org/large", FILES)
    leave_partial(repo, content)
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert ranges(hub, since) == asked
    assert outcome.downloaded_bytes == arrived + 2
    assert_complete(outcome, repo)


def test_content_that_is_not_what_the_hub_announced_is_an_error_and_not_kept(
    cache_dir: Path, repo: Path, hub: HubServer, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / NAME).write_bytes(WEIGHTS)
    hub.add_repo("org/large", served)
    (served / NAME).write_bytes(WEIGHTS[::-1])
    since = len(hub.requests)
    with pytest.raises(CacheError, match=f"{NAME} arrived with the hash .*: it was removed"):
        pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert ranges(hub, since) == [None]
    assert list((repo / "blobs").iterdir()) == []


def test_a_server_without_ranges_sends_the_file_from_its_start(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES, has_ranges=False)
    leave_partial(repo, WEIGHTS[:CHUNK])
    hub.break_after(NAME, 22 * MB)
    seen: list[PullProgress] = []
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous, on_progress=seen.append)
    done = [state.done_bytes for state in seen]
    assert done == sorted(set(done))
    assert seen[-1] == PullProgress(25 * MB + 2, 25 * MB + 2)
    assert outcome.downloaded_bytes == 2 * CHUNK + 25 * MB + 2
    assert_complete(outcome, repo)


@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_in_place_of_a_partial_file_is_not_written_through(
    cache_dir: Path, repo: Path, hub: HubServer, tmp_path: Path, kind: str
) -> None:
    hub.add_repo("org/large", FILES)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(WEIGHTS[:CHUNK])
    partial = leave_partial(repo, b"")
    partial.unlink()
    if kind == "symbolic":
        partial.symlink_to(elsewhere)
    else:
        partial.hardlink_to(elsewhere)
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert ranges(hub, since) == [None]
    assert elsewhere.read_bytes() == WEIGHTS[:CHUNK]
    assert_complete(outcome, repo)


def test_nothing_is_left_in_a_repository_that_is_a_link(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    target = cache_dir / "large-disk"
    target.mkdir()
    repo.parent.mkdir(parents=True)
    repo.symlink_to(target)
    interrupt(hub, cache_dir)
    assert list(target.rglob("*.incomplete")) == []
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert Path(outcome.path, NAME).read_bytes() == WEIGHTS


def test_two_pulls_at_once_download_once_and_both_succeed(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    release = hub.stall_after(NAME, 22 * MB)
    since = len(hub.requests)
    seen: list[PullProgress] = []
    with start_pull(cache_dir, hub) as other:
        wait_until(lambda: len(list(repo.glob("blobs/*.incomplete"))) == 1, "the first download")
        threading.Timer(1, release.set).start()
        outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous, on_progress=seen.append)
        assert other.wait(60) == 0
    assert ranges(hub, since) == [None]
    assert seen[-1].done_bytes == 25 * MB + 2
    assert outcome.downloaded_bytes == 2
    assert_complete(outcome, repo)


def test_what_another_process_downloads_counts_as_progress(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    partial = leave_partial(repo, WEIGHTS[:1000])
    lock = repo.parent / ".locks" / repo.name / f"{BLOB}.lock"
    lock.parent.mkdir(parents=True)
    seen: list[PullProgress] = []
    arguments = {"cache_dir": cache_dir, "on_progress": seen.append, **hub.anonymous}
    with ThreadPoolExecutor() as pool:
        with held_by_process(LOCK, str(lock)):
            pulling = pool.submit(pull, "org/large", **arguments)
            for size in (1000, CHUNK, 2 * CHUNK):
                partial.write_bytes(WEIGHTS[:size])
                wait_until(lambda size=size: seen and seen[-1].done_bytes == size, f"{size} bytes")  # type: ignore[misc]
        outcome = pulling.result(60)
    assert outcome.downloaded_bytes == 25 * MB + 2 - 2 * CHUNK
    assert_complete(outcome, repo)


def test_small_files_that_another_process_downloaded_meanwhile_count_in_the_end(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    since = len(hub.requests)
    etag = etag_of("config.json", b"{}")
    lock = repo.parent / ".locks" / repo.name / f"{etag}.lock"
    lock.parent.mkdir(parents=True)
    seen: list[PullProgress] = []
    arguments = {"cache_dir": cache_dir, "on_progress": seen.append, **hub.anonymous}
    with ThreadPoolExecutor() as pool:
        with held_by_process(LOCK, str(lock)):
            pulling = pool.submit(pull, "org/large", **arguments)
            wait_until(lambda: seen and seen[-1].done_bytes == 25 * MB, "the large file")
            (repo / "blobs" / etag).write_bytes(b"{}")
        assert_complete(pulling.result(60), repo)
    assert downloads(hub, since, "config.json") == []
    assert seen[-1] == PullProgress(25 * MB + 2, 25 * MB + 2)


def test_content_that_two_files_share_is_downloaded_once(cache_dir: Path, hub: HubServer) -> None:
    hub.add_repo("org/large", {**FILES, "copy.safetensors": WEIGHTS})
    since = len(hub.requests)
    seen: list[PullProgress] = []
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous, on_progress=seen.append)
    assert len(downloads(hub, since)) + len(downloads(hub, since, "copy.safetensors")) == 1
    assert outcome.downloaded_bytes == 25 * MB + 2
    assert PullProgress(50 * MB, 50 * MB + 2) in seen
    assert Path(outcome.path, "copy.safetensors").read_bytes() == WEIGHTS


def test_two_pulls_at_once_without_working_locks_do_no_harm(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    release = hub.stall_after(NAME, 22 * MB)
    with start_pull(cache_dir, hub) as other:
        partial = repo / "blobs" / f"{BLOB}.incomplete"
        wait_until(lambda: partial.exists() and partial.stat().st_size == 2 * CHUNK, "two chunks")
        for lock in repo.parent.rglob(".locks/*/*.lock"):
            lock.unlink()  # what is locked from now on is another file
        outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
        assert_complete(outcome, repo)
        release.set()
        other.wait(60)
    assert_complete(outcome, repo)
    assert verify(cache_dir).problems == ()


def test_the_last_bytes_of_a_large_download_need_no_room_for_all_of_it(
    cache_dir: Path, repo: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/large", FILES)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 * MB))
    with pytest.raises(CacheError, match=r"needs 25\.0 MB more"):
        pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    leave_partial(repo, WEIGHTS[: 2 * CHUNK])
    assert_complete(pull("org/large", cache_dir=cache_dir, **hub.anonymous), repo)


def test_a_large_file_gets_the_permissions_that_huggingface_hub_gives(
    cache_dir: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    old = os.umask(0o027)
    try:
        outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    finally:
        os.umask(old)
    modes = {name: Path(outcome.path, name).stat().st_mode & 0o777 for name in FILES}
    assert modes == {NAME: 0o640, "config.json": 0o640}


def test_a_partial_file_is_cleared_when_it_is_old_and_not_when_it_is_taken_up_again(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)
    interrupt(hub, cache_dir)
    partial = repo / "blobs" / f"{BLOB}.incomplete"
    set_age(cache_dir, days=1)
    assert plan_deletion(cache_dir).bytes == 2 * CHUNK
    release = hub.stall_after(NAME, 22 * MB)
    with start_pull(cache_dir, hub) as running:
        wait_until(lambda: time.time() - partial.stat().st_mtime < 3600, "the download to begin")
        assert partial.stat().st_size == 2 * CHUNK, "nothing new has been written"
        running.kill()
    release.set()
    assert "is being downloaded" in [kept.why for kept in plan_deletion(cache_dir).kept]
    set_age(cache_dir, days=1)
    assert plan_deletion(cache_dir).execute().bytes == 2 * CHUNK
    assert not partial.exists()


@pytest.mark.parametrize("is_disabled", [True, False])
def test_files_on_xet_are_left_to_huggingface_hub_unless_it_is_off(
    cache_dir: Path,
    repo: Path,
    hub: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    is_disabled: bool,
) -> None:
    hub.add_repo("org/large", FILES, on_xet=True)
    leave_partial(repo, WEIGHTS[:CHUNK])
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", is_disabled)
    since = len(hub.requests)
    if is_disabled:
        outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
        assert ranges(hub, since) == [f"bytes={CHUNK}-"]
        assert_complete(outcome, repo)
    else:
        with pytest.raises(CacheError):  # nothing here speaks Xet
            pull("org/large", cache_dir=cache_dir, **hub.anonymous)
        assert ranges(hub, since) == []
        assert [r for r in hub.requests[since:] if "xet-read-token" in r.path]


def test_a_file_too_large_for_plain_http_is_an_error_before_anything_is_downloaded(
    cache_dir: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("org/large", FILES, on_xet=True)
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 20 * MB)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with pytest.raises(
        CacheError, match=r"holds 25\.0 MB, .* 20\.0 MB .* unset HF_HUB_DISABLE_XET"
    ):
        pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert list(cache_dir.iterdir()) == []


def test_a_download_from_another_host_is_resumed_there_without_the_token(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    allowed = frozenset({TOKEN})
    hub.add_repo("org/large", FILES, on_cdn=True, gated=True, allowed_tokens=allowed)
    interrupt(hub, cache_dir, token=TOKEN)
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, endpoint=hub.endpoint, token=TOKEN)
    assert [(r.path[:5], r.range, r.has_token) for r in downloads(hub, since)] == [
        ("/org/", f"bytes={2 * CHUNK}-", True),
        ("/cdn/", f"bytes={2 * CHUNK}-", False),
    ]
    assert_complete(outcome, repo)


def test_a_hub_that_names_files_otherwise_still_serves_a_pull(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES, declared_etags={NAME: "mirrored-1"})
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert ranges(hub, since) == [None], "it is downloaded once"
    assert outcome.downloaded_bytes == 25 * MB + 2
    assert Path(outcome.path, NAME).read_bytes() == WEIGHTS
    assert (repo / "blobs" / "mirrored-1").exists()


def test_a_push_during_a_pull_does_not_change_what_is_pulled(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    before = hub.add_repo("org/large", FILES).commit
    pushed: list[str] = []

    def on_progress(_: PullProgress) -> None:
        if not pushed:
            files = {**FILES, "config.json": b"[1]"}
            again = hub.add_repo("org/large", files, revisions={before: FILES})
            again.commits[before] = again.commits[again.refs[before]]
            pushed.append(again.commit)

    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous, on_progress=on_progress)
    assert pushed != [before]
    assert outcome.revision == before
    assert (repo / "refs" / "main").read_text() == before
    assert_complete(outcome, repo)


def test_a_hub_that_has_it_no_more_after_the_large_files_is_an_error(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    hub.add_repo("org/large", FILES)

    def on_progress(progress: PullProgress) -> None:
        if progress.done_bytes == 25 * MB:
            hub.add_repo("org/large", FILES, private=True)

    with pytest.raises(CacheError, match="the download of org/large stopped"):
        pull("org/large", cache_dir=cache_dir, **hub.anonymous, on_progress=on_progress)
    assert (repo / "blobs" / BLOB).exists()
    assert not (repo / "refs").exists()


@pytest.mark.slow
def test_when_one_file_fails_the_others_stop_and_keep_what_they_have(
    cache_dir: Path, repo: Path, hub: HubServer
) -> None:
    other = os.urandom(60 * MB)
    hub.add_repo("org/large", {**FILES, "other.safetensors": other})
    hub.break_after(NAME, 22 * MB, times=1000)
    release = hub.stall_after("other.safetensors", 22 * MB)
    since = len(hub.requests)

    def release_after_the_failure() -> None:
        wait_until(lambda: len(downloads(hub, since)) >= 6, "the last attempt")
        time.sleep(1)
        release.set()

    thread = threading.Thread(target=release_after_the_failure)
    thread.start()
    with pytest.raises(CacheError, match="stopped: RemoteProtocolError"):
        pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    thread.join()
    hub.mend(NAME)
    partial = repo / "blobs" / f"{etag_of('other.safetensors', other)}.incomplete"
    assert partial.stat().st_size == 2 * CHUNK
    since = len(hub.requests)
    outcome = pull("org/large", cache_dir=cache_dir, **hub.anonymous)
    assert [r.range for r in downloads(hub, since, "other.safetensors")] == [f"bytes={2 * CHUNK}-"]
    assert Path(outcome.path, "other.safetensors").read_bytes() == other
