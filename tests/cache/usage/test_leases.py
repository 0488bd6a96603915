"""Leases: what a run in another container uses is kept, as far as files can tell."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ml_experiments.cache.delete.plan import plan_deletion
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.usage.leases import Lease, LeaseKeeper, sweep_leases
from ml_experiments.cache.usage.watch import CacheWatch
from ml_experiments.cache.verification import verify
from tests.support.hub_cache import commit_of, fingerprint, model_names, set_age, write_repo
from tests.support.waiting import wait_until

A, B = commit_of("a"), commit_of("b")


@pytest.fixture
def leases(cache_dir: Path) -> Path:
    return cache_dir / "huggingface" / ".ml-experiments" / "leases"


def nothing() -> None:
    pass


def never(lease: Lease) -> bool:
    return False


class Published:
    """Counts how often a lease was published, and what stood in the folder then."""

    def __init__(self, folder: Path) -> None:
        self.seen: queue.SimpleQueue[list[list[str]]] = queue.SimpleQueue()
        self._folder = folder

    def __call__(self) -> None:
        files = self._folder.glob("*.json")
        self.seen.put([json.loads(file.read_text())["folders"] for file in files])

    def next(self) -> list[list[str]]:
        return self.seen.get(timeout=30)


def hold(cache_dir: Path, leases: Path, *folders: str, run_id: str = "run-1") -> LeaseKeeper:
    """Return a keeper, entered, whose lease is written."""
    published = Published(leases)
    keeper = LeaseKeeper(cache_dir, run_id, f"holder of {run_id}", published)
    keeper.__enter__()
    keeper.add(folders)
    published.next()
    return keeper


def end(keeper: LeaseKeeper) -> None:
    keeper.__exit__(None, None, None)


@pytest.mark.parametrize("store", ["hub", "transformers"])
@pytest.mark.parametrize("pattern", [None, f"org/a@{B}"])
def test_what_a_run_elsewhere_uses_is_kept_until_it_ends(
    cache_dir: Path, leases: Path, store: str, pattern: str | None
) -> None:
    hub = cache_dir / "huggingface" / store
    write_repo(hub, "org/a", {A: {"x": b"1"}, B: {"x": b"22"}})
    keeper = hold(cache_dir, leases, "models--org--a")
    plan = plan_deletion(cache_dir, pattern)
    assert (plan.names, plan.bytes) == ((), 0)
    assert {kept.why for kept in plan.kept} == {"is in use by run run-1"}
    end(keeper)
    assert len(plan_deletion(cache_dir, pattern).execute().names) == 1
    assert list(leases.iterdir()) == []


def test_the_rest_goes(cache_dir: Path, hub_dir: Path, leases: Path) -> None:
    for name in ("org/a", "org/b", "org/c"):
        write_repo(hub_dir, name, {commit_of(name): {"x": b"1"}})
    write_repo(hub_dir, "org/b", {A: {"x": b"1"}}, kind="dataset")
    first = hold(cache_dir, leases, "models--org--a")
    second = hold(cache_dir, leases, "datasets--org--b", run_id="run-2")
    outcome = plan_deletion(cache_dir, kinds=("model", "dataset")).execute()
    assert outcome.names == ("org/b", "org/c")
    assert [(kept.name, kept.kind, kept.why) for kept in outcome.kept] == [
        ("org/a", "model", "is in use by run run-1"),
        ("org/b", "dataset", "is in use by run run-2"),
    ]
    end(first)
    end(second)


def test_a_run_that_began_after_the_plan_keeps_its_model(
    cache_dir: Path, hub_dir: Path, leases: Path
) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    plan = plan_deletion(cache_dir)
    assert plan.names == ("org/a",)
    keeper = hold(cache_dir, leases, "models--org--a")
    outcome = plan.execute()
    assert (outcome.names, outcome.bytes) == ((), 0)
    assert outcome.failed[0].why == "is in use by run run-1"
    assert model_names(cache_dir) == ["org/a"]
    end(keeper)


def test_a_download_of_a_run_elsewhere_is_kept_however_long_it_stalls(
    cache_dir: Path, hub_dir: Path, leases: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    (repo / "blobs" / f"{'0' * 64}.incomplete").write_bytes(b"half")
    set_age(repo, days=1)
    plan = plan_deletion(cache_dir, keep_latest=True)
    assert len(plan.leftovers) == 1
    keeper = hold(cache_dir, leases, "models--org--a")
    assert plan_deletion(cache_dir, keep_latest=True).leftovers == ()
    assert [kept.why for kept in plan.execute().failed] == ["is in use by run run-1"]
    end(keeper)
    assert len(plan_deletion(cache_dir, keep_latest=True).execute().leftovers) == 1


def test_what_a_run_elsewhere_uses_is_not_repaired(
    cache_dir: Path, hub_dir: Path, leases: Path
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    (repo / "snapshots" / A / "x").resolve().write_bytes(b"2")
    keeper = hold(cache_dir, leases, "models--org--a")
    [problem] = verify(cache_dir, repair=True).problems
    assert (problem.repaired, problem.why_not_repaired) == (False, "is in use by run run-1")
    end(keeper)
    assert verify(cache_dir, repair=True).problems[0].repaired


def test_a_lease_grows_and_is_published_only_when_it_does(cache_dir: Path, leases: Path) -> None:
    published = Published(leases)
    with LeaseKeeper(cache_dir, "run-1", "holder", published) as keeper:
        keeper.add(["models--org--b"])
        assert published.next() == [["models--org--b"]]
        keeper.add(["models--org--b"])
        keeper.add(name for name in ("models--org--a", "models--org--b"))
        assert published.next() == [["models--org--a", "models--org--b"]]
    assert published.seen.empty()
    assert list(leases.iterdir()) == []


def test_a_run_that_uses_no_model_leaves_and_publishes_nothing(
    cache_dir: Path, leases: Path
) -> None:
    published = Published(leases)
    before = fingerprint(cache_dir)
    with LeaseKeeper(cache_dir, "run-1", "holder", published):
        pass
    assert published.seen.empty()
    assert fingerprint(cache_dir) == before


def test_nobody_waits_for_a_lease_to_be_published(cache_dir: Path) -> None:
    release = threading.Event()

    def wait() -> None:
        release.wait(30)

    with LeaseKeeper(cache_dir, "run-1", "holder", wait) as keeper:
        started = time.monotonic()
        keeper.add(["models--org--a"])
        assert time.monotonic() - started < 1
        release.set()


@pytest.mark.parametrize(
    ("error", "remains"),
    [(ValueError(), False), (SystemExit(), False), (KeyboardInterrupt(), True)],
)
def test_a_lease_ends_with_its_run_and_outlives_an_interrupt(
    cache_dir: Path, leases: Path, error: BaseException, remains: bool
) -> None:
    # after an interrupt the run goes on in another container, under the same lease
    published = Published(leases)

    def run() -> None:
        with LeaseKeeper(cache_dir, "run-1", "holder", published) as keeper:
            keeper.add(["models--org--a"])
            published.next()
            raise error

    with pytest.raises(type(error)):
        run()
    assert bool(list(leases.iterdir())) == remains
    if remains:
        with LeaseKeeper(cache_dir, "run-1", "holder", published) as keeper:
            keeper.add(["models--org--a"])
            assert published.next() == [["models--org--a"]]
        assert list(leases.iterdir()) == []


def test_a_second_submission_of_a_run_has_a_lease_of_its_own(cache_dir: Path, leases: Path) -> None:
    published = Published(leases)
    with LeaseKeeper(cache_dir, "run-1", "second call", published) as second:
        second.add(["models--org--a"])
        published.next()
        with LeaseKeeper(cache_dir, "run-1", "first call", published) as first:
            first.add(["models--org--a"])
            published.next()
        assert len(list(leases.iterdir())) == 1


def test_sweeping_removes_the_leases_of_runs_that_have_ended(
    cache_dir: Path, hub_dir: Path, leases: Path
) -> None:
    for name in ("org/a", "org/b"):
        write_repo(hub_dir, name, {commit_of(name): {"x": b"1"}})
    before = time.time()
    ended = hold(cache_dir, leases, "models--org--a", run_id="ended")
    running = hold(cache_dir, leases, "models--org--b", run_id="running")
    queried: list[Lease] = []

    def goes_on(lease: Lease) -> bool:
        queried.append(lease)
        return lease.holder == "holder of running"

    sweep_leases(cache_dir, goes_on)
    assert plan_deletion(cache_dir).names == ("org/a",)
    assert sorted(lease.run_id for lease in queried) == ["ended", "running"]
    assert all(before <= lease.since <= time.time() for lease in queried)
    end(ended)
    end(running)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"run_id": 1}', b'{"folders": 3}', b"\xff"]
)
def test_a_lease_that_is_not_readable_keeps_nothing_and_stays(
    cache_dir: Path, hub_dir: Path, leases: Path, content: bytes
) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    leases.mkdir(parents=True)
    (leases / "run-1.json").write_bytes(content)
    sweep_leases(cache_dir, never)
    assert plan_deletion(cache_dir).execute().names == ("org/a",)
    assert (leases / "run-1.json").read_bytes() == content


def test_leases_behind_a_link_are_neither_read_nor_written_nor_removed(
    cache_dir: Path, hub_dir: Path, tmp_path: Path
) -> None:
    write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "leases").mkdir(parents=True)
    lease = {"run_id": "r", "holder": "h", "since": 0, "folders": ["models--org--a"]}
    (elsewhere / "leases" / "r.json").write_text(json.dumps(lease))
    (cache_dir / "huggingface" / ".ml-experiments").symlink_to(elsewhere)
    before = fingerprint(elsewhere)
    with LeaseKeeper(cache_dir, "run-1", "holder", nothing) as keeper:
        keeper.add(["models--org--a"])
    sweep_leases(cache_dir, never)
    assert plan_deletion(cache_dir).execute().names == ("org/a",)
    assert fingerprint(elsewhere) == before


def test_a_lease_that_cannot_be_written_is_a_warning(
    cache_dir: Path, leases: Path, caplog: pytest.LogCaptureFixture
) -> None:
    leases.parent.mkdir(parents=True)
    leases.write_text("a file where the folder should be")
    published = Published(leases)
    with LeaseKeeper(cache_dir, "run-1", "holder", published) as keeper:
        keeper.add(["models--org--a"])
        wait_until(lambda: "are not protected" in caplog.text, "the warning", timeout_s=10)
    assert published.seen.empty()


def read(repo: Path) -> None:
    (repo / "snapshots" / A / "x").read_bytes()


def finish_download(repo: Path) -> None:
    partial = repo / "blobs" / f"{'0' * 40}.incomplete"
    partial.write_bytes(b"1")
    partial.rename(partial.with_suffix(""))


def look(repo: Path) -> None:
    scan(repo.parent.parent.parent)
    (repo / "refs" / "main").read_text()


@pytest.mark.parametrize(
    ("use", "expected"),
    [(read, ["models--org--a"]), (finish_download, ["models--org--a"]), (look, [])],
)
def test_a_watch_tells_of_a_repository_when_it_is_first_used(
    cache_dir: Path, hub_dir: Path, use: Callable[[Path], Any], expected: list[str]
) -> None:
    repo = write_repo(hub_dir, "org/a", {A: {"x": b"1"}})
    seen: list[str] = []
    with CacheWatch(cache_dir, seen.append) as watch:
        use(repo)
        assert seen == expected
        use(repo)
    assert seen == expected
    assert bool(watch.used()) == (use is read)
