"""Small helpers under the names of `diffusers.utils`."""

from __future__ import annotations

import io
import os
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from underdraw import absent, checks
from underdraw.errors import InputError, InputTypeError, NotFoundError

__all__ = ["load_image", "make_image_grid"]

WAIT = 30
"""Seconds for an address to answer."""
LARGEST = 64 * 2**20
"""Bytes that are fetched at most."""


def load_image(
    image: str | os.PathLike[str] | Image.Image,
    convert_method: Callable[[Image.Image], Image.Image] | None = None,
) -> Image.Image:
    """A picture from a file or an address (http, https), upright and in RGB.

    Args:
        image: its place, or a picture of Pillow.
        convert_method: instead of the conversion to RGB. Pictures of more than 8 bits stay as they
            are without it, for in RGB they would be white.

    Raises:
        NotFoundError: there is no such file, or the address gives nothing.
        InputError: it is no picture, or larger than 64 MiB.
        InputTypeError: neither a place nor a picture.
    """
    if isinstance(image, str | os.PathLike):
        image = _opened(os.fspath(image))
    if not isinstance(image, Image.Image):
        raise InputTypeError(
            f"image is {type(image).__name__}; allowed: a path, an address, a PIL picture"
        )
    upright = ImageOps.exif_transpose(image)
    if convert_method is not None:
        return convert_method(upright)
    return upright if upright.mode in ("I", "F") or ";" in upright.mode else upright.convert("RGB")


def _opened(place: str) -> Image.Image:
    """The picture in a file or at an address, read whole."""
    held: Any = place
    try:
        if place.startswith(("http://", "https://")):
            with urllib.request.urlopen(place, timeout=WAIT) as answer:
                held = answer.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise NotFoundError(f"image={place!r} gives nothing: {error}") from None
    if isinstance(held, bytes):
        if len(held) > LARGEST:
            raise InputError(f"image={place!r} is larger than {LARGEST >> 20} MiB")
        held = io.BytesIO(held)
    elif not os.path.isfile(place):
        raise NotFoundError(f"image={place!r} is neither a file nor an address")
    try:
        with Image.open(held) as picture:
            picture.load()
    except UnidentifiedImageError:
        raise InputError(f"image={place!r} is not a picture") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image={place!r} cannot be read: {error}") from None
    return picture


def make_image_grid(
    images: Sequence[Image.Image], rows: int, cols: int, resize: int | None = None
) -> Image.Image:
    """Pictures on one sheet, row by row, each with the size of the first.

    Args:
        resize: side of a square to which each is brought first.

    Raises:
        InputError, InputTypeError: there are not `rows * cols` pictures.
    """
    count = checks.whole("rows", rows) * checks.whole("cols", cols)
    if not all(isinstance(one, Image.Image) for one in images):
        raise InputTypeError("images holds something else than PIL pictures")
    if len(images) != count:
        raise InputError(f"images has {len(images)} entries; rows * cols is {count}")
    if resize is not None:
        side = checks.whole("resize", resize)
        images = [one.resize((side, side)) for one in images]
    width, height = images[0].size
    sheet = Image.new("RGB", (cols * width, rows * height))
    for i, one in enumerate(images):
        sheet.paste(one, (i % cols * width, i // cols * height))
    return sheet


def __getattr__(name: str) -> Any:
    raise absent.name(__name__, name, __all__)
