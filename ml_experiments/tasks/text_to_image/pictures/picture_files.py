"""Picture files that say how they were drawn, and reading that again."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ml_experiments import __version__
from ml_experiments.serialization.files import open_atomically

ImageFormat = Literal["png", "jpeg", "webp"]
EXTENSIONS: Mapping[ImageFormat, str] = {"png": "png", "jpeg": "jpg", "webp": "webp"}
DEFAULT_QUALITY = 95

_IMAGE_DESCRIPTION, _SOFTWARE, _EXIF, _USER_COMMENT = 0x010E, 0x0131, 0x8769, 0x9286
# as other programs spell the settings in the string that is called `parameters`
_PARAMETERS = {
    "num_inference_steps": "Steps",
    "scheduler": "Sampler",
    "guidance_scale": "CFG scale",
    "true_cfg_scale": "True CFG scale",
    "seed": "Seed",
    "size": "Size",
    "model": "Model",
    "loras": "Loras",
}


def write_picture(
    path: Path,
    picture: Image.Image,
    texts: Mapping[str, str],
    image_format: ImageFormat = "png",
    quality: int = DEFAULT_QUALITY,
) -> None:
    """Write a picture and its metadata, whole or not at all.

    PNG gets a text chunk for each item; JPEG and WebP get EXIF: all items as JSON in
    ImageDescription. Each also gets `parameters`, the string that many programs read, in
    UserComment where it is EXIF.

    Raises:
        OSError: If it can't be written; it names the file.
    """
    parameters = describe_parameters({**texts, "size": f"{picture.width}x{picture.height}"})
    options: dict[str, Any] = {}
    if image_format == "png":
        chunks = PngImagePlugin.PngInfo()
        for key, text in {**texts, "parameters": parameters}.items():
            chunks.add_itxt(key, text)
        options["pnginfo"] = chunks
    else:
        exif = Image.Exif()
        exif[_IMAGE_DESCRIPTION] = json.dumps(dict(texts))  # all ASCII, as EXIF wants it
        exif[_SOFTWARE] = f"ml_experiments {__version__}"
        exif.get_ifd(_EXIF)[_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
        options |= {"exif": exif, "quality": quality}
        if image_format == "webp":
            options["lossless"] = quality == 100
    try:
        with open_atomically(path) as file:
            picture.save(file, format=image_format.upper(), **options)
    except OSError as e:
        text = f"a picture could not be written: {e.strerror or e}"
        raise OSError(e.errno or errno.EIO, text, str(path)) from e


def describe_parameters(texts: Mapping[str, str]) -> str:
    """Return the string that programs which draw pictures know as `parameters`."""
    lines = [texts["prompt"]] if "prompt" in texts else []
    if negative := texts.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    named = [f"{name}: {texts[key]}" for key, name in _PARAMETERS.items() if key in texts]
    return "\n".join([*lines, ", ".join([*named, f"Version: ml_experiments {__version__}"])])


def read_texts(path: Path) -> dict[str, str] | None:
    """Return the metadata that `write_picture` wrote into a file.

    None if the file isn't there, or not whole.
    """
    texts: dict[str, Any]
    try:
        with Image.open(path) as picture:
            if picture.format == "PNG":
                texts = {str(key): text for key, text in picture.info.items()}
                texts.pop("parameters", None)
                picture.verify()
            else:
                texts = json.loads(picture.getexif()[_IMAGE_DESCRIPTION])
                picture.load()
    # what libraries raise for damaged files is not documented
    except (OSError, SyntaxError, ValueError, KeyError, EOFError, UnidentifiedImageError):
        return None
    if not all(isinstance(text, str) for text in texts.values()):
        return None
    return texts
