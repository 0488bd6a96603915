from __future__ import annotations

import os
from pathlib import Path

import pytest

from ml_experiments.cache.pull.pulling import pull
from ml_experiments.cache.scan.scanning import scan
from ml_experiments.cache.usage.recorded_uses import record_uses
from ml_experiments.cache.usage.watch import UsedRevision
from tests.support.hub_cache import (
    commit_of,
    fingerprint,
    model_names,
    set_age,
    write_repo,
)
from tests.support.hub_server import HubServer

WEIGHTS = bytes(range(256)) * 40


def hub_of(cache_dir: Path) -> Path:
    return cache_dir / "huggingface" / "hub"


def test_names_are_those_of_the_hub_sorted_once_and_models_only(cache_dir: Path) -> None:
    hub = hub_of(cache_dir)
    write_repo(hub, "stabilityai/stable-diffusion-2-1", {commit_of("a"): {"a.json": b"{}"}})
    write_repo(hub, "gpt2", {commit_of("b"): {"a.json": b"{}"}, commit_of("c"): {"b": b"x"}})
    write_repo(hub, "nyu-mll/glue", {commit_of("d"): {"a": b"y"}}, kind="dataset")
    older = cache_dir / "huggingface" / "transformers"
    write_repo(older, "gpt2", {commit_of("b"): {"a.json": b"{}"}})
    assert model_names(cache_dir) == ["gpt2", "stabilityai/stable-diffusion-2-1"]


def test_what_the_library_downloaded_is_read_back(cache_dir: Path, hub: HubServer) -> None:
    first = {"config.json": b"{}", "unet/model.safetensors": WEIGHTS}
    repo = hub.add_repo("org/read", first, revisions={"v2": {**first, "config.json": b"[]"}})
    for revision in (None, "v2"):
        pull("org/read", cache_dir=cache_dir, revision=revision)
    [item] = scan(cache_dir).items
    assert (item.name, item.kind, item.store) == ("org/read", "model", "hub")
    assert {r.commit: r.refs for r in item.revisions} == {
        repo.commit: ("main",),
        repo.refs["v2"]: ("v2",),
    }
    assert item.bytes == len(WEIGHTS) + 2 + 2, "a blob that two revisions share counts once"
    assert [r.bytes for r in item.revisions] == [len(WEIGHTS) + 2] * 2


def test_the_layout_that_tests_write_is_the_one_that_the_library_writes(
    cache_dir: Path, hub: HubServer
) -> None:
    files = {"config.json": b"{}", "unet/model.safetensors": WEIGHTS}
    repo = hub.add_repo("org/same", files)
    downloaded, written = cache_dir / "downloaded", cache_dir / "written"
    pull("org/same", cache_dir=downloaded)
    write_repo(hub_of(written), "org/same", {repo.commit: files})
    theirs, ours = (
        {
            path.removeprefix(str(root)): content
            for path, content in fingerprint(root).items()
            if not any(part in path for part in (".locks", "CACHEDIR.TAG", "trees"))
        }
        for root in (downloaded, written)
    )
    assert theirs == ours


def test_our_own_records_are_part_of_the_cache(cache_dir: Path) -> None:
    repo = write_repo(hub_of(cache_dir), "org/name", {commit_of("a"): {"a": b"x"}})
    record_uses(repo.parent, [UsedRevision("org/name", "model", commit_of("a"), 1, True)])
    assert (repo.parent / ".ml-experiments").is_dir()
    assert scan(repo.parent).unrecognised == ()


def test_what_is_no_part_of_a_cache_is_named_and_why(cache_dir: Path) -> None:
    hub = hub_of(cache_dir)
    write_repo(hub, "org/name", {commit_of("a"): {"a": b"x"}})
    (hub / "my-notes.txt").write_text("mine")
    (hub / "models--org--damaged").mkdir()
    (hub / "models--org--damaged" / "weights.bin").write_bytes(b"mine")
    elsewhere = cache_dir / "elsewhere"
    write_repo(elsewhere, "org/linked", {commit_of("b"): {"a": b"x" * 50}})
    (hub / "models--org--linked").symlink_to(elsewhere / "models--org--linked")
    found = scan(cache_dir)
    assert [item.name for item in found.items] == ["org/name"]
    assert found.bytes == 1
    why = {entry.path.name: entry.why for entry in found.unrecognised}
    assert "is damaged: it has no snapshots" in why["models--org--damaged"]
    assert "symbolic link" in why["models--org--linked"]
    assert "not part of" in why["my-notes.txt"]


def test_a_hub_folder_that_is_a_link_is_not_followed(cache_dir: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_repo(elsewhere, "org/name", {commit_of("a"): {"a": b"x"}})
    (cache_dir / "huggingface").mkdir()
    (cache_dir / "huggingface" / "hub").symlink_to(elsewhere)
    found = scan(cache_dir)
    assert found.items == ()
    assert "symbolic link" in found.unrecognised[0].why


def test_last_use_is_the_latest_of_access_and_change(cache_dir: Path) -> None:
    repo = write_repo(hub_of(cache_dir), "org/name", {commit_of("a"): {"a": b"x"}})
    set_age(repo, days=30)
    [blob] = (repo / "blobs").iterdir()
    changed = blob.stat().st_mtime
    assert scan(cache_dir).items[0].last_used == pytest.approx(changed, abs=1)
    os.utime(blob, (changed + 5000, changed))
    assert scan(cache_dir).items[0].last_used == pytest.approx(changed + 5000, abs=1)


def test_very_long_and_unicode_names_are_listed(cache_dir: Path) -> None:
    names = [f"org/{'n' * 230}", "組織/模型-ü", "a" * 200]
    for name in names:
        write_repo(hub_of(cache_dir), name, {commit_of(name): {"a": b"x"}})
    assert model_names(cache_dir) == sorted(names)


def test_torch_checkpoints_and_partial_downloads_are_found(cache_dir: Path) -> None:
    folder = cache_dir / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "resnet50-0676ba61.pth").write_bytes(b"weights")
    (folder / f"vgg16-397923af.pth.{'0' * 32}.partial").write_bytes(b"half")
    (folder / "notes.txt").write_text("mine")
    found = scan(cache_dir)
    assert [(i.name, i.bytes) for i in found.items] == [("resnet50-0676ba61.pth", 7)]
    assert [(lo.name, lo.bytes) for lo in found.leftovers] == [("vgg16-397923af.pth", 4)]
    assert [e.path.name for e in found.unrecognised] == ["notes.txt"]
