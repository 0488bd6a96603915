"""Arrays, tensors, images, bytes and paths become files of the run."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ml_experiments.serialization.loading import load_file
from ml_experiments.serialization.writing import encode
from tests.support.small_disk import small_disk
from tests.support.torch_values import HAS_TORCH, needs_torch, with_torch
from tests.support.values import travel, travel_and_load


def structured_array() -> Any:
    return np.array([(1, b"a", [0.5, 1])], dtype=[("n", ">i4"), ("s", "S3"), ("v", "f4", (2,))])


@pytest.mark.parametrize(
    "array",
    [
        np.array([0.1, np.nan, -np.inf], dtype=np.float32),
        np.zeros((2, 0, 3), dtype=np.int16),
        np.asfortranarray(np.arange(6).reshape(2, 3))[::-1],
        np.array(["a", "猫"]),
        np.array(["2026-01-02", "NaT"], dtype="datetime64[ns]"),
        np.array([1, 2], dtype=">u2"),
        np.array([1j], dtype=np.complex64),
        np.array([True, False]),
        np.arange(4, dtype=np.longdouble),
        structured_array(),
        np.matrix([[1, 2]]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_an_array_comes_back_from_a_file(array: Any, artifacts: Path) -> None:
    descriptor = travel({"x": array}, artifacts)["x"]
    assert descriptor == {
        "$type": "ndarray",
        "path": "artifacts/results/x.npy",
        "dtype": str(array.dtype),
        "shape": list(array.shape),
    }
    loaded = load_file(descriptor, artifacts.parent)
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize(
    "tensor",
    with_torch(
        1,
        lambda torch: [
            torch.arange(6, dtype=torch.int64).reshape(2, 3).T,
            torch.tensor([0.1, math.nan], requires_grad=True),
            torch.nn.Parameter(torch.ones(2)),
            torch.tensor([1 + 2j]).conj(),
            torch.tensor([1 + 2j], dtype=torch.complex32),
            torch.tensor([True]),
            torch.tensor([3], dtype=torch.uint16),
            torch.zeros(0, 3),
        ],
    ),
    ids=lambda tensor: str(tensor.dtype) if HAS_TORCH else None,
)
def test_a_tensor_comes_back_as_an_array(tensor: Any, artifacts: Path) -> None:
    descriptor = travel({"x": tensor}, artifacts)["x"]
    assert descriptor["$type"] == "tensor"
    assert descriptor["dtype"] == str(tensor.dtype).removeprefix("torch.")
    assert descriptor["shape"] == list(tensor.shape)
    loaded = load_file(descriptor, artifacts.parent)
    expected = tensor.detach().resolve_conj()
    np.testing.assert_array_equal(loaded, np.array(expected.tolist()).reshape(tensor.shape))


@needs_torch
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_a_dtype_that_numpy_lacks_comes_back_exactly_in_a_wider_one(
    name: str, artifacts: Path
) -> None:
    import torch

    dtype = getattr(torch, name)
    bits = torch.uint8 if dtype.itemsize == 1 else torch.int16
    every = torch.arange(256).to(bits) if bits is torch.uint8 else torch.arange(-(2**15), 2**15)
    tensor = every.to(bits).view(dtype)
    loaded = travel_and_load(tensor, artifacts)
    assert loaded.dtype == np.float32
    numbers = ~torch.from_numpy(loaded).isnan()
    again = torch.from_numpy(loaded).to(dtype)
    assert numbers.sum() > 200
    assert torch.equal(again.view(bits)[numbers], tensor.view(bits)[numbers])


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "LA", "La", "P", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
        *("I", "F", "I;16", "I;16B", "I;16L"),
    ],
)
def test_an_image_of_any_mode_comes_back_pixel_by_pixel(mode: str, artifacts: Path) -> None:
    blank = Image.new(mode, (5, 3))
    noise = np.random.default_rng(0).integers(0, 256, len(blank.tobytes()), dtype=np.uint8)
    if mode == "1":
        noise &= 0b11111000  # five pixels in a row: the rest of the byte is padding
    pixels = np.arange(15, dtype=np.float32).tobytes() if mode == "F" else noise.tobytes()
    image = Image.frombytes(mode, (5, 3), pixels)
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    loaded = travel_and_load(image, artifacts)
    assert (loaded.mode, loaded.size) == (image.mode, image.size)
    assert loaded.tobytes() == image.tobytes()
    if mode == "P":
        assert loaded.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_an_image_is_a_png_where_png_can_hold_it(artifacts: Path) -> None:
    descriptor = travel({"sample": Image.new("RGB", (2, 1), "red")}, artifacts)["sample"]
    assert descriptor == {
        "$type": "image",
        "path": "artifacts/results/sample.png",
        "mode": "RGB",
        "size": [2, 1],
    }
    assert (artifacts / "results/sample.png").read_bytes().startswith(b"\x89PNG")


def test_images_with_a_palette_with_alpha_or_without_pixels_come_back(artifacts: Path) -> None:
    with_alpha = Image.new("PA", (2, 2))
    with_alpha.putpalette([255, 0, 0, 0, 255, 0])
    loaded = travel_and_load(with_alpha, artifacts)
    assert loaded.tobytes() == with_alpha.convert("RGBA").tobytes()
    assert travel_and_load(Image.new("RGB", (0, 3)), artifacts).size == (0, 3)


def test_large_bytes_come_back_from_a_file(artifacts: Path) -> None:
    content = os.urandom(5000)
    descriptor = travel({"blob": content}, artifacts)["blob"]
    assert descriptor == {
        "$type": "bytes",
        "path": "artifacts/results/blob.bin",
        "size_bytes": 5000,
    }
    assert load_file(descriptor, artifacts.parent) == content


def test_a_path_below_the_artifacts_becomes_a_file_of_the_run(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = artifacts / "samples" / "first.txt"
    file.parent.mkdir()
    file.write_text("hello")
    monkeypatch.chdir(artifacts)
    expected = {"$type": "file", "path": "artifacts/samples/first.txt", "size_bytes": 5}
    assert travel([file, Path("samples/first.txt")], artifacts) == [expected, expected]
    folder = travel(file.parent, artifacts)
    assert folder == {"$type": "folder", "path": "artifacts/samples"}
    moved = artifacts.parent.rename(artifacts.parent.with_name("elsewhere"))
    assert load_file(expected, moved).read_text() == "hello"
    assert load_file(folder, moved) == moved / "artifacts/samples"


def test_a_missing_path_below_the_artifacts_is_a_problem(artifacts: Path) -> None:
    encoded, problems = encode({"model": artifacts / "model.pt"}, artifacts, "results")
    assert encoded["model"]["$type"] == "unportable"
    assert "results.model: " in problems[0]
    assert "no such file" in problems[0]


def test_a_link_out_of_the_artifacts_is_a_plain_path(artifacts: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("x")
    (artifacts / "link.txt").symlink_to(tmp_path / "outside.txt")
    assert travel(artifacts / "link.txt", artifacts) == artifacts / "link.txt"


def test_file_names_are_safe_readable_and_unique(artifacts: Path) -> None:
    keys = [
        *(
            "../../x",
            "/etc/passwd",
            "..",
            "",
            "a/b",
            "a\\b",
            "a b",
            "A/B",
            "a\0b",
            "con",
            "x" * 500,
        ),
        *("猫", "é", "e\u0301", "\ud800", "a\nb", "-", ".hidden", "COM1", 5, None, ("t", 1)),
    ]
    value = {key: np.full(2, i) for i, key in enumerate(keys)}
    found = travel(value, artifacts)
    paths = [descriptor["path"] for descriptor in found.values()]
    assert len({path.casefold() for path in paths}) == len(keys)
    for i, descriptor in enumerate(found.values()):
        name = Path(descriptor["path"]).name
        assert descriptor["path"] == f"artifacts/results/{name}"
        assert not name.startswith(".")
        assert len(name.encode()) <= 120
        assert load_file(descriptor, artifacts.parent)[0] == i
    assert sorted(p.name for p in artifacts.parent.rglob("*") if p.is_file()) == sorted(
        Path(path).name for path in paths
    )
    assert "artifacts/results/a_b.npy" in paths


@needs_torch
def test_file_names_follow_the_place_in_the_results(artifacts: Path) -> None:
    import torch

    value = {"layers": [{"weight": np.ones(1)}], "a": {"b": torch.ones(1)}}
    travel(value, artifacts)
    assert sorted(p.name for p in (artifacts / "results").iterdir()) == [
        "a.b.npy",
        "layers.0.weight.npy",
    ]
    assert travel(np.ones(1), artifacts)["path"] == "artifacts/results/value.npy"


def test_files_of_the_experiment_are_never_overwritten(artifacts: Path) -> None:
    (artifacts / "results").mkdir()
    (artifacts / "results" / "x.npy").write_text("mine")
    descriptor = travel({"x": np.ones(1)}, artifacts)["x"]
    assert descriptor["path"] == "artifacts/results/x-2.npy"
    assert (artifacts / "results" / "x.npy").read_text() == "mine"


def test_a_name_may_hold_a_folder(artifacts: Path) -> None:
    encoded, problems = encode({"grad": np.ones(1), "bad": len}, artifacts, "metrics/12")
    assert encoded["grad"]["path"] == "artifacts/metrics/12/grad.npy"
    assert problems[0].startswith("metrics/12.bad: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize(
    "value",
    ["np.ones(100_000)", "bytes(1_000_000)", "Image.effect_noise((1000, 1000), 90)", "frame"],
)
def test_a_full_disk_is_an_error_and_leaves_no_file(value: str, artifacts: Path) -> None:
    code = f"""
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd
from PIL import Image
from ml_experiments.serialization.writing import encode
frame = pd.DataFrame({{"x": np.arange(100_000)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    encode({{"x": {value}}}, Path(sys.argv[1]), "results")
except OSError as e:
    print("surfaced", type(e).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(artifacts)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("surfaced")
    assert list((artifacts / "results").iterdir()) == []


@pytest.mark.parametrize(
    "value",
    [
        np.ones(100_000),
        np.asfortranarray(np.ones((300, 300))),
        *with_torch(1, lambda torch: [torch.ones(100_000)]),
        bytes(1_000_000),
        Image.effect_noise((1000, 1000), 90),
        pd.DataFrame({"x": range(100_000)}),
        {f"layer{i}": np.ones(1000) for i in range(100)},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_full_disk_is_reported_as_such(value: Any, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "256k") as disk:
        with pytest.raises(OSError, match="No space left") as caught:
            encode({"x": value}, disk / "artifacts", "results")
        assert caught.value.errno == errno.ENOSPC
        assert list(disk.rglob("*.tmp")) == []


def test_many_small_arrays_are_synced_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), fsync(file)))
    value = {f"layer{i}.weight": np.full(8, i) for i in range(1000)}
    encoded, problems = encode(value, tmp_path / "artifacts", "results")
    assert problems == ()
    assert len(synced) < 20  # each takes milliseconds
    assert load_file(encoded["layer999.weight"], tmp_path)[0] == 999


def test_values_of_several_threads_get_files_of_their_own(artifacts: Path) -> None:
    def write(number: int) -> Any:
        return encode([{"x": np.full(1, number)} for _ in range(20)], artifacts, "metrics")[0]

    with ThreadPoolExecutor(4) as pool:
        encoded = list(pool.map(write, range(8)))
    paths = [item["x"]["path"] for items in encoded for item in items]
    assert len(set(paths)) == 160
    for number, items in enumerate(encoded):
        assert [load_file(item["x"], artifacts.parent)[0] for item in items] == [number] * 20


def test_artifacts_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file, not a folder")
    with pytest.raises(OSError, match=r"Not a directory|exists"):
        encode({"x": np.ones(1)}, tmp_path / "artifacts", "results")
