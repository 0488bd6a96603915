"""What torch.hub downloaded."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.cache.scan.scanning import scan


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
