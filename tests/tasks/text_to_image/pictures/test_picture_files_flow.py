"""Names, formats and metadata of picture files; prompts from a file; overflowed pictures."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
from PIL import Image

from ml_experiments import ConfigError, LocalBackend, run_experiment
from ml_experiments.config.validation import validate_config
from ml_experiments.tasks.text_to_image import TextToImageExperiment
from ml_experiments.tasks.text_to_image.pictures.file_names import check_template, file_names
from ml_experiments.tasks.text_to_image.pictures.picture_files import read_texts
from tests.support.pictures import Overflows, difference, draw, pixels, refusals


@pytest.mark.parametrize(
    ("image_format", "suffix"), [("png", ".png"), ("jpeg", ".jpg"), ("webp", ".webp")]
)
@pytest.mark.slow
def test_every_format_holds_the_settings(
    warm_backend: LocalBackend, image_format: str, suffix: str
) -> None:
    result = draw(warm_backend, prompt="a red 7 ☃", image_format=image_format, run_seed=3)
    record = result.results["images"][0]
    file = result.load(record["path"])
    assert file.suffix == suffix
    read = read_texts(file)
    assert read is not None
    assert read["prompt"] == "a red 7 ☃"
    assert read["seed"] == str(record["seed"])
    with Image.open(file) as picture:
        assert picture.format == image_format.upper()
        if image_format == "png":
            parameters = picture.info["parameters"]
        else:
            comment = picture.getexif().get_ifd(0x8769)[0x9286]
            assert comment[:8] == b"UNICODE\0"
            parameters = comment[8:].decode("utf-16-be")
    assert parameters.startswith("a red 7 ☃\nSteps: 2, Sampler: DDIMScheduler, CFG scale: 3.0")


@pytest.mark.slow
def test_quality_changes_the_size_of_files(warm_backend: LocalBackend) -> None:
    sizes = []
    for quality in (20, 95):
        result = draw(warm_backend, image_format="jpeg", image_quality=quality)
        sizes.append(result.load(result.results["images"][0]["path"]).stat().st_size)
    assert sizes[0] < sizes[1]


def test_names_follow_the_template_and_suit_every_file_system() -> None:
    pictures = [
        {"index": 0, "prompt": "Con", "seed": 5, "number": 0},
        {"index": 1, "prompt": "../a\\b: *?", "seed": 6, "number": 1},
    ]
    assert list(file_names("{prompt}", pictures, "png")) == ["_con.png", "a-b.png"]
    assert list(file_names("Über {seed}.{number}", pictures, "jpg"))[1] == "Über 6.1.jpg"
    (long,) = file_names("ü" * 300 + "{index}", pictures[:1], "png")
    assert len(long.encode()) < 255
    assert list(file_names("COM¹{model}", pictures[:1], "png")) == ["_COM¹.png"]
    with pytest.raises(ConfigError, match=r"pictures 0 and 1 would both be x\.png; add"):
        file_names("x{model}", pictures, "png")
    with pytest.raises(ConfigError, match="shorten it"):
        file_names("ü" * 200 + "{index}", pictures, "png")
    for template, reason in {
        "a/{index}": "can't stand in the name",
        "{index}\u202e": "can't stand in the name",
        "{promt}": "did you mean 'prompt'",
        "{index:3d}": "without a format",
        "picture": "the same name",
        "{": "not a template",
    }.items():
        with pytest.raises(ValueError, match=reason):
            check_template(template)


def rows_of(file: Path) -> list[dict[str, Any]]:
    config, _ = validate_config(TextToImageExperiment, {"prompts_file": str(file)})
    return [row.model_dump() for row in config.rows]


def test_prompts_come_from_txt_csv_and_jsonl(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a red seven\n\n# blue, two \n", encoding="utf-8")
    assert [row["prompt"] for row in rows_of(tmp_path / "a.txt")] == ["a red seven", "# blue, two"]
    with (tmp_path / "b.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows(
            [
                ["prompt", "seed", "negative_prompt", "size", "guidance_scale", "num_images"],
                ["a red\nseven", 7, "blue", "64x32", 2.5, 3],
                ["two", "", "", "", "", ""],
            ]
        )
    first, second = rows_of(tmp_path / "b.csv")
    assert (first["prompt"], first["seed"], first["negative_prompt"]) == ("a red\nseven", 7, "blue")
    assert (first["width"], first["height"], first["guidance_scale"]) == (64, 32, 2.5)
    assert (second["seed"], second["width"], second["num_images"]) == (None, None, 1)
    (tmp_path / "d.csv").write_text("prompt;guidance_scale\n1,5\u2028\x85a;2,5\n", encoding="utf-8")
    (row,) = rows_of(tmp_path / "d.csv")
    assert (row["prompt"], row["guidance_scale"]) == ("1,5\u2028\x85a", 2.5)
    lines = [json.dumps({"prompt": "one", "scheduler": "euler"}), '"two"']
    (tmp_path / "c.jsonl").write_text("\n".join(lines))
    assert [row["scheduler"] for row in rows_of(tmp_path / "c.jsonl")] == ["euler", None]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "Prompt;Seed\none, two;7\n"),
        ("a.tsv", "prompt\tseed\none, two\t7\n"),
        ("a.csv", '\ufeffprompt, seed \n"one, two",7\n'),
        ("a.csv", '\r\n,,\r\nprompt,seed,,\r\n"one, two",7,,\r\n,,,\r\n'),
    ],
    ids=["semicolons", "tabs", "byte order mark", "empty rows and columns"],
)
def test_tables_are_read_as_spreadsheets_write_them(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (row,) = rows_of(tmp_path / name)
    assert (row["prompt"], row["seed"]) == ("one, two", 7)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,seed\none,1\ntwo,x\n", "a.csv, line 3: seed: .*given: 'x'"),
        ("a.csv", "prompt,sed\none,1\ntwo,2\n", "csv, line 1: .*'sed' is no field.*mean 'seed'"),
        ("a.csv", "text\none\n", "line 1: .*no column 'prompt'"),
        ("a.csv", "prompt,seed\none,1,2\n", "line 2: 3 values for 2 columns"),
        ("a.csv", "prompt,size\none,64\n", "line 2: size: '64' is not WIDTHxHEIGHT"),
        ("a.csv", "prompt,height\none,33\n", "line 2: height: .*multiple of 8"),
        ("a.jsonl", '{"prompt": "one"}\n{"prompt"\n', "line 2: it is not JSON"),
        ("a.jsonl", "[1]", "line 1: it is no object"),
        ("a.txt", "one\ntwo\none\n", "line 3: would draw the same as line 1"),
        ("a.csv", "prompt,num_images\na,1\na,2\n", "line 3: would draw the same as line 2"),
        ("a.csv", "prompt,size,width\none,64x64,8\n", "line 2: size: give either size"),
        ("a.csv", ",prompt\n0,one\n", "line 1: .*column 1 has no name"),
        ("a.jsonl", '{"prompt": "a", "seed": true}', "line 1: seed: true is no value"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1: .*twice"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "line 1: .*surrogates not allowed"),
        ("a.txt", "\n", "has no prompt"),
        ("a.xlsx", "x", "must be a .txt, .csv, .tsv or .jsonl file"),
    ],
)
def test_a_bad_row_is_named_by_its_line_before_anything_starts(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        run_experiment(TextToImageExperiment, {"prompts_file": str(tmp_path / name)})


@pytest.mark.slow
def test_each_prompt_is_drawn_with_its_own_settings(warm_backend: LocalBackend) -> None:
    rows = [
        {"prompt": "a red seven", "seed": 41, "guidance_scale": 6.0},
        {"prompt": "two", "num_inference_steps": 3},
        {"prompt": "a red seven", "seed": 41, "num_images": 2},
    ]
    result = draw(warm_backend, prompt=rows, batch_size=3)
    records = result.results["images"]
    assert [r["seed"] for r in records][::2] == [41, 41]
    assert records[3]["seed"] == 42
    assert [r["guidance_scale"] for r in records] == [6.0, 3.0, 3.0, 3.0]
    assert [r["num_inference_steps"] for r in records] == [2, 3, 2, 2]
    drawn = pixels(result)
    alone = pixels(draw(warm_backend, prompt=rows[:1]))
    assert difference(drawn[:1], alone) <= 1
    assert difference(drawn[0], drawn[2]) > 5


@pytest.mark.slow
def test_overflowed_pictures_are_flagged_and_the_others_stay(warm_backend: LocalBackend) -> None:
    good = pixels(draw(warm_backend, num_images=4))
    result = draw(warm_backend, Overflows, num_images=4, overflowing=[1, 3])
    flags = [bool(image.get("overflowed")) for image in result.results["images"]]
    assert flags == [False, True, False, True]
    drawn = pixels(result)
    assert drawn[1].max() == 0
    assert difference(drawn[::2], good[::2]) == 0
    assert result.run_dir is not None
    assert "try dtype=float32 or bfloat16" in (result.run_dir / "log.txt").read_text()
    failed = draw(warm_backend, Overflows, num_images=2, overflowing=[0, 1])
    assert failed.error is not None
    assert "every picture is black" in failed.error.message


@pytest.mark.slow
def test_a_stochastic_scheduler_takes_its_noise_from_each_pictures_seed(
    warm_backend: LocalBackend,
) -> None:
    pytest.importorskip("torchsde")
    chosen = {"scheduler": "dpmsolversde", "num_images": 3, "num_inference_steps": 4}
    together, alone, other = (
        pixels(draw(warm_backend, **chosen, batch_size=size, seed=seed))
        for size, seed in ((3, 5), (1, 5), (3, 6))
    )
    assert difference(together, alone) <= 1
    assert difference(together, other) > 20


@pytest.mark.slow
def test_what_a_model_does_not_read_of_a_prompt_is_told_or_encoded_in_pieces(
    warm_backend: LocalBackend,
) -> None:
    prompt = ["a red handwritten seven " * 12 + "blue", "a red seven"]
    result = draw(warm_backend, prompt=prompt)
    records = result.results["images"]
    assert records[0]["unread_prompt"].endswith("blue")
    assert "unread_prompt" not in records[1]
    pytest.importorskip("compel")
    together = draw(warm_backend, prompt=prompt, long_prompt=True)
    assert "unread_prompt" not in together.results["images"][0]
    alone = draw(warm_backend, prompt=prompt, long_prompt=True, batch_size=1)
    assert difference(pixels(together), pixels(alone)) <= 1
    assert difference(pixels(together)[0], pixels(result)[0]) > 5


@pytest.mark.slow
def test_checkpoint_files_are_refused_with_what_to_do(
    warm_backend: LocalBackend, tmp_path: Path
) -> None:
    for name in ("a.ckpt", "b.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    answers = refusals(
        warm_backend,
        {"model_name": str(tmp_path / "a.ckpt")},
        {"model_name": str(tmp_path / "b.safetensors")},
        {"model_name": str(tmp_path / "c.safetensors")},
        {"negative_prompt": "blue", "true_cfg_scale": 3.0},
        {"first_block_cache": 0.1},
        {"attention_backend": "flahs"},
    )
    expected = (
        *("allow_pickle=true", "can't be read as a checkpoint file", "nothing is there"),
        *("takes no true_cfg_scale", "first_block_cache", "did you mean 'flash'"),
    )
    for answer, text in zip(answers, expected, strict=True):
        assert text in answer
        assert "ConfigError" in answer
