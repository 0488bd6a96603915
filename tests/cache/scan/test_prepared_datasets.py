"""Tables that the datasets library prepared."""

from __future__ import annotations

from pathlib import Path

from ml_experiments.cache.scan.scanning import scan


def test_prepared_datasets_are_found_and_what_the_user_saved_there_is_not(cache_dir: Path) -> None:
    folder = cache_dir / "huggingface" / "datasets"
    table = folder / "nyu-mll___glue" / "cola" / "0.0.0" / "abc"
    table.mkdir(parents=True)
    (table / "dataset_info.json").write_text("{}")
    (table / "glue-train.arrow").write_bytes(b"rows")
    saved = folder / "my_own" / "train"
    saved.mkdir(parents=True)
    (saved / "dataset_info.json").write_text("{}")
    extracted = folder / "downloads" / "extracted" / "1.0.0" / "x"
    extracted.mkdir(parents=True)
    (extracted / "dataset_info.json").write_text("{}")
    found = scan(cache_dir)
    assert [(i.name, i.kind, i.bytes) for i in found.items] == [("nyu-mll/glue", "dataset", 6)]
    assert [e.path.name for e in found.unrecognised] == ["downloads", "my_own"]
