"""Soft edges: how much a picture changes from place to place, as HED's maps look."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.pictures.reading import as_picture

SCALES = (1.0, 2.0, 4.0)
"""Widths of the blur in front, in pixels of a picture whose shorter side has `AT`."""
AT = 512
_BRIGHTEST = 98.0
"""Of 100 gradients, what is white: few lines of a picture are as sharp as its sharpest."""
_FAINTEST = 1 / 64
"""Of what colours can change by over a pixel; below it a picture is held to be plain."""


def soft_edges(image: Any, *, scale: float = 1.0) -> Image.Image:
    """White on black, bright where the picture changes much, at fine and coarse scales together.

    It has no network: a texture is as bright as an outline of the same contrast, where HED (Xie &
    Tu 2015) tells them apart.

    Args:
        image: a PIL picture of any mode, or an array as everywhere.
        scale: how much coarser than usual it looks, in 0.25 .. 16.

    Returns:
        A grey picture ("L") of the same size.

    Raises:
        InputTypeError, InputError: no such picture or number.
    """
    scale = checks.number("scale", scale, 0.25, 16)
    pixels = np.asarray(as_picture("image", image).convert("RGB"), np.float32) / 255
    unit = max(min(pixels.shape[:2]) / AT, 1 / 4) * scale
    each = [_change(_blurred(pixels, one * unit)) * one * unit for one in SCALES]
    mean = np.mean(each, 0)
    white = max(float(np.percentile(mean, _BRIGHTEST)), _FAINTEST)
    return Image.fromarray((np.clip(mean / white, 0, 1) * 255 + 0.5).astype(np.uint8))


def _change(pixels: np.ndarray) -> np.ndarray:
    """Length of the gradient, of the channel that changes most; `(height, width)`."""
    x = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), mode="edge")
    across, down = x[1:-1, 2:] - x[1:-1, :-2], x[2:, 1:-1] - x[:-2, 1:-1]
    return (np.sqrt(across**2 + down**2) / 2).max(2)


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """By a Gaussian of that width in pixels; what is beyond an edge is as at the edge."""
    reach = max(1, round(3 * sigma))
    line = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    line = (line / line.sum()).astype(np.float32)
    for axis in (0, 1):
        size = pixels.shape[axis]
        padded = np.pad(pixels, [(reach, reach) if i == axis else (0, 0) for i in range(3)], "edge")
        pixels = sum(
            weight * np.take(padded, range(i, i + size), axis) for i, weight in enumerate(line)
        )  # type: ignore[assignment]
    return pixels
