from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.verification import verify
from ml_experiments.errors import CacheError
from tests.support.held_files import OPEN, held_by_process
from tests.support.hub_cache import (
    commit_of,
    fingerprint,
    model_names,
    share_blobs,
    write_repo,
)
from tests.support.hub_server import HubServer

A, B = commit_of("a"), commit_of("b")
WEIGHTS = b"w" * 3_000_000


def damage(link: Path) -> None:
    blob = link.resolve()
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)


def test_a_download_is_as_it_should_be(cache_dir: Path, hub: HubServer) -> None:
    hub.add_repo("org/fine", {"config.json": b"{}", "empty.txt": b"", "m.safetensors": WEIGHTS})
    pull("org/fine", cache_dir=cache_dir)
    outcome = verify(cache_dir)
    assert (outcome.checked, outcome.checked_bytes) == (3, len(WEIGHTS) + 2)
    assert (outcome.problems, outcome.unchecked) == ((), ())


@pytest.mark.parametrize("name", ["config.json", "m.safetensors"])
def test_one_wrong_bit_is_found_and_repair_makes_the_next_pull_fetch_it(
    cache_dir: Path, hub: HubServer, name: str
) -> None:
    files = {"config.json": b"{}", "m.safetensors": WEIGHTS}
    hub.add_repo("org/bit", files)
    snapshot = Path(pull("org/bit", cache_dir=cache_dir).path)
    damage(snapshot / name)
    before = fingerprint(cache_dir)
    [problem] = verify(cache_dir).problems
    assert fingerprint(cache_dir) == before, "looking changes nothing"
    assert (problem.name, problem.repaired) == ("org/bit", False)
    assert problem.expected == (snapshot / name).resolve().name != problem.actual
    [problem] = verify(cache_dir, "org/*", repair=True).problems
    assert problem.repaired
    assert verify(cache_dir).problems == ()
    assert model_names(cache_dir) == ["org/bit"], "the rest of it is still usable"
    outcome = pull("org/bit", cache_dir=cache_dir)
    assert outcome.downloaded_files == 1
    assert (snapshot / name).read_bytes() == files[name]


def test_a_link_to_missing_content_is_found_and_removed(cache_dir: Path) -> None:
    hub = cache_dir / "huggingface" / "hub"
    repo = write_repo(hub, "org/hole", {A: {"x": b"1", "y": b"22"}})
    (repo / "snapshots" / A / "y").resolve().unlink()
    assert [flaw.what for flaw in scan(cache_dir).items[0].damage] == [
        "leads to content that is missing"
    ]
    [problem] = verify(cache_dir, repair=True).problems
    assert problem.path == f"huggingface/hub/models--org--hole/snapshots/{A}/y"
    assert (problem.expected, problem.actual, problem.repaired) == (None, None, True)
    assert model_names(cache_dir) == ["org/hole"]


def test_a_shared_blob_that_is_wrong_is_removed_from_the_store(cache_dir: Path) -> None:
    hub = cache_dir / "huggingface" / "hub"
    for name, commit in (("org/a", A), ("org/b", B)):
        write_repo(hub, name, {commit: {"m.safetensors": WEIGHTS, "x": b"1"}})
    stored = share_blobs(hub, "org--a", "org--b")
    assert verify(cache_dir).problems == ()
    damage(stored)
    problems = verify(cache_dir, repair=True).problems
    assert [problem.name for problem in problems] == ["org/a", "org/b"]
    assert all(problem.repaired for problem in problems)
    assert not stored.exists()
    assert model_names(cache_dir) == ["org/a", "org/b"]
    assert verify(cache_dir).problems == ()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_what_is_in_use_is_not_repaired(cache_dir: Path) -> None:
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"123"}})
    damage(repo / "snapshots" / A / "x")
    with held_by_process(OPEN, str(repo / "snapshots" / A / "x")):
        [problem] = verify(cache_dir, repair=True).problems
    assert not problem.repaired
    assert "is in use by python" in str(problem.why_not_repaired)
    assert (repo / "snapshots" / A / "x").exists()


def test_torch_checkpoints_are_checked_too(cache_dir: Path) -> None:
    folder = cache_dir / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    digest = hashlib.sha256(b"weights").hexdigest()[:8]
    (folder / f"good-{digest}.pth").write_bytes(b"weights")
    (folder / "bad-00000000.pth").write_bytes(b"weights")
    (folder / "no_hash.pth").write_bytes(b"weights")
    outcome = verify(cache_dir)
    assert outcome.checked == 2
    assert [p.name for p in outcome.problems] == ["bad-00000000.pth"]
    assert outcome.unchecked == ("torch/hub/checkpoints/no_hash.pth",)


def test_a_pattern_limits_what_is_read(cache_dir: Path) -> None:
    hub = cache_dir / "huggingface" / "hub"
    write_repo(hub, "org/a", {A: {"x": b"1"}})
    write_repo(hub, "org/b", {B: {"x": b"22"}})
    outcome = verify(cache_dir, "org/B")
    assert (outcome.checked, outcome.checked_bytes) == (1, 2)


def test_a_name_that_is_not_there_is_an_error(cache_dir: Path) -> None:
    write_repo(cache_dir / "huggingface" / "hub", "org/name", {A: {"x": b"1"}})
    with pytest.raises(CacheError, match=r"nothing .* 'org/nam' \(did you mean 'org/name'\?\)"):
        verify(cache_dir, "org/nam")


def test_a_link_out_of_the_cache_is_neither_read_nor_removed(
    cache_dir: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    (repo / "blobs" / ("0" * 40)).symlink_to(mine)
    outcome = verify(cache_dir, repair=True)
    assert outcome.problems == ()
    assert outcome.unchecked == (f"huggingface/hub/models--org--a/blobs/{'0' * 40}",)
    assert outcome.checked == 1
    assert mine.read_text() == "mine"


def test_checking_is_not_a_use(cache_dir: Path) -> None:
    repo = write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    blob = (repo / "snapshots" / A / "x").resolve()
    os.utime(blob, (1000, 1000))
    assert verify(cache_dir).checked == 1
    assert blob.stat().st_atime == 1000


def test_a_revision_limits_what_is_read_and_its_repair_leaves_no_link_to_nothing(
    cache_dir: Path,
) -> None:
    hub = cache_dir / "huggingface" / "hub"
    refs = {"main": A, "v2": B}
    shared = {"m.safetensors": WEIGHTS}
    revisions = {A: {**shared, "x": b"1"}, B: {**shared, "x": b"22"}}
    repo = write_repo(hub, "org/a", revisions, refs=refs)
    damage((repo / "snapshots" / A / "x").resolve())
    for name in ("org/a@v2", f"org/a@{B[:6]}"):
        outcome = verify(cache_dir, name)
        assert (outcome.checked_bytes, outcome.problems) == (len(WEIGHTS) + 2, ())
    assert [problem.expected for problem in verify(cache_dir, "org/a@main").problems] == [
        (repo / "snapshots" / A / "x").resolve().name
    ]
    damage((repo / "snapshots" / B / "m.safetensors").resolve())
    assert len(verify(cache_dir, "org/a@v2", repair=True).problems) == 1
    assert not [link for link in repo.rglob("*") if link.is_symlink() and not link.exists()]
    assert len(verify(cache_dir).problems) == 1, "the other revision's file is not repaired"


@pytest.mark.parametrize("name", ["org/a@nope", "bad-00000000.pth@main"])
def test_a_revision_that_is_not_there_is_an_error(cache_dir: Path, name: str) -> None:
    write_repo(cache_dir / "huggingface" / "hub", "org/a", {A: {"x": b"1"}})
    checkpoints = cache_dir / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "bad-00000000.pth").write_bytes(b"weights")
    with pytest.raises(CacheError, match="nothing in the cache matches"):
        verify(cache_dir, name)
