"""Pictures in and out: tensors near [-1, 1], numpy arrays in [0, 1], PIL images, files."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.formats.json_text import as_object, parse
from underdraw.formats.writing import writing_file
from underdraw.pictures.files import opened

METADATA = "underdraw"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Suffix -> format of the pictures that can be written."""
HOW = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
# JPEG and WebP have no texts by name: the record stands where cameras let people comment.
EXIF, USER_COMMENT, ASCII = 0x8769, 0x9286, b"ASCII\0\0\0"
MOST_EXIF = 65_000
OUTPUT_TYPES = ("pil", "np", "pt", "latent")


def to_output(images: Array, output_type: str, framework: Any) -> Any:
    """Decoded images `(batch, 3, height, width)` near [-1, 1] as the caller wants them.

    "pt": the same shape in [0, 1]; "np": float32 `(batch, height, width, 3)` in [0, 1]; "pil": a
    list.
    """
    images = framework.operations.clip(images / 2 + 0.5, 0, 1)
    if output_type == "pt":
        return images
    pixels = framework.to_numpy(images).transpose(0, 2, 3, 1)
    return pixels if output_type == "np" else to_pil(pixels)


def to_pixels(images: np.ndarray) -> np.ndarray:
    """Float32 `(batch, height, width, 3)` in [0, 1] of `(batch, 3, height, width)` in [-1, 1]."""
    plain = images.transpose(0, 2, 3, 1) / np.float32(2) + np.float32(0.5)
    return plain.clip(0, 1).astype(np.float32)


def to_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 of numbers in [0, 1], rounded to the nearest."""
    return (pixels * 255).round().astype(np.uint8)


def to_pil(pixels: np.ndarray) -> list[Any]:
    """PIL images from float `(batch, height, width, 3)` in [0, 1]."""
    return [Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p) for p in to_bytes(pixels)]


def save_png(
    image: Any, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None
) -> None:
    """Write a PIL image, whole or not at all, with what is needed to make it again.

    `metadata` is what the pipeline left in `image.info["underdraw"]` if not given.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"path={os.fspath(path)!r} must end with .png")
    save_picture(image, path, metadata)


def save_picture(
    image: Any, path: str | os.PathLike[str], metadata: dict[str, Any] | None = None
) -> None:
    """As `save_png`, in the format that the suffix of `path` names (`FORMATS`): PNG and WebP keep
    every pixel, JPEG nearly. JPEG has room for 64 kB of metadata; longer ones are left out with a
    warning."""
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise InputError(f"path={str(path)!r} must end with one of {', '.join(FORMATS)}")
    text = image.info.get(METADATA) if metadata is None else json.dumps(metadata)
    options: dict[str, Any] = dict(HOW[kind])
    if text and kind == "PNG":
        info = PngInfo()
        info.add_itxt(METADATA, text)
        options["pnginfo"] = info
    elif text:
        exif = Image.Exif()
        exif[EXIF] = {USER_COMMENT: ASCII + text.encode("ascii", "backslashreplace")}
        if kind == "JPEG" and len(exif.tobytes()) > MOST_EXIF:
            warnings.warn(f"{path}: JPEG has no room for how it was made", stacklevel=2)
        else:
            options["exif"] = exif
    with writing_file(path) as file:
        image.save(file, format=kind, **options)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_picture` wrote beside the picture.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, or holds no such metadata.
    """
    with opened(path) as image:
        text = image.info.get(METADATA)
        if text is None and image.format in ("JPEG", "WEBP"):
            text = image.getexif().get_ifd(EXIF).get(USER_COMMENT)
    if isinstance(text, bytes):
        text = text.removeprefix(ASCII).decode("ascii", "replace")
    if not isinstance(text, str):
        raise InputError(f"{os.fspath(path)!r} holds no underdraw metadata")
    source = f"{os.fspath(path)!r}: its underdraw metadata"
    return as_object(parse(text, source, fault=InputError), source, fault=InputError)


def grid(images: list[Any], columns: int | None = None, gap: int = 4) -> Any:
    """Several PIL images on one sheet, row by row."""
    if not images:
        raise InputError("images is empty; a grid needs at least one")
    columns = columns or int(np.ceil(np.sqrt(len(images))))
    rows = -(-len(images) // columns)
    width, height = (max(image.size[axis] for image in images) for axis in (0, 1))
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet
