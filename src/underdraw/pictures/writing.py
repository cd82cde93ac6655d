"""Pictures in and out: tensors near [-1, 1], numpy arrays in [0, 1], PIL images, PNG files."""

from __future__ import annotations

import json
import os
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
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"path={str(path)!r} must end with .png")
    info = PngInfo()
    text = image.info.get(METADATA) if metadata is None else json.dumps(metadata)
    if text:
        info.add_itxt(METADATA, text)
    with writing_file(path) as file:
        image.save(file, format="PNG", pnginfo=info)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_png` wrote beside the picture.

    Raises:
        NotFoundError: there is no such file.
        InputError: it is no picture, or holds no such metadata.
    """
    with opened(path) as image:
        text = image.info.get(METADATA)
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
