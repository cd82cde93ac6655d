"""Parts of pictures: around a mask, around the middle, inside of boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from underdraw.errors import InputError
from underdraw.pictures import modes


class Crop(NamedTuple):
    """A part of a picture in pixels; right and bottom lie outside it."""

    left: int
    top: int
    right: int
    bottom: int


def crop_around(mask: Any, width: int, height: int, padding: int) -> Crop:
    """The part of a picture around what is set in a PIL mask, with `padding` pixels on each side,
    widened to the proportions of `width` x `height` as far as the picture allows.

    Raises:
        InputError: nothing is set.
    """
    mask = modes.as_mask("mask_image", mask).convert("L")
    found = mask.getbbox()
    if found is None:
        raise InputError("mask_image is empty, so there is nothing to crop around")
    (left, top, right, bottom), (wide, high) = found, mask.size
    left, top = max(left - padding, 0), max(top - padding, 0)
    right, bottom = min(right + padding, wide), min(bottom + padding, high)
    if (right - left) / (bottom - top) > width / height:
        top, bottom = _widened(top, bottom, (right - left) / (width / height), high)
    else:
        left, right = _widened(left, right, (bottom - top) * (width / height), wide)
    return Crop(left, top, right, bottom)


def _widened(start: int, end: int, wanted: float, most: int) -> tuple[int, int]:
    """An interval made as long as wanted, on both sides alike, moved to lie within 0 .. most."""
    more = int(wanted - (end - start))
    start, end = start - more // 2, end + more - more // 2
    if end >= most:
        start, end = start - (end - most), most
    if start < 0:
        start, end = 0, end - start
    return start, min(end, most)


def filled(picture: Any, width: int, height: int) -> Any:
    """A PIL picture in the middle of `width` x `height`, as large as its proportions allow; what
    stays empty on two sides repeats its edge."""
    wide, high = picture.size
    across = width / height < wide / high
    inner = (width, high * width // wide) if across else (wide * height // high, height)
    inner = (max(inner[0], 1), max(inner[1], 1))
    small = picture.resize(inner, Image.Resampling.LANCZOS)
    left, top = width // 2 - inner[0] // 2, height // 2 - inner[1] // 2
    pixels = np.asarray(small)
    after = ((top, height - top - inner[1]), (left, width - left - inner[0]))
    edges = after if pixels.ndim == 2 else (*after, (0, 0))
    return Image.fromarray(np.pad(pixels, edges, mode="edge"))


def cut_to(picture: Any, height: int, width: int) -> Any:
    """The largest part around the middle of a PIL image that has the proportions of a size,
    resized to it."""
    wide, high = picture.size
    if (wide, high) == (width, height):
        return picture
    part_wide, part_high = min(wide, high * width / height), min(high, wide * height / width)
    left, top = (wide - part_wide) / 2, (high - part_high) / 2
    if (part_wide, part_high) != (wide, high):
        picture = picture.crop((left, top, left + part_wide, top + part_high))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def box_mask(boxes: Sequence[Sequence[float]], height: int, width: int) -> np.ndarray:
    """Float32 `(height, width)`: 1 inside of any box, 0 elsewhere.

    Sides are rounded down, as diffusers does; a box with an area covers at least one place.
    """
    mask = np.zeros((height, width), np.float32)
    for x0, y0, x1, y1 in boxes:
        if x0 < x1 and y0 < y1:
            left, top = min(int(x0 * width), width - 1), min(int(y0 * height), height - 1)
            right, bottom = max(int(x1 * width), left + 1), max(int(y1 * height), top + 1)
            mask[top:bottom, left:right] = 1
    return mask
