"""Thin edges (Canny 1986), with the numbers of OpenCV."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.errors import InputError
from underdraw.pictures.reading import as_picture

LOW, HIGH = 100, 200
"""The thresholds that published nets were trained with."""
_MOST = 8 * 255
"""The largest gradient there is: Sobel in two directions."""
_TURN = 15
_TAN_22 = 13573
"""tan 22.5 degrees in units of 2 ** -15, as OpenCV counts."""
_NEIGHBOURS = tuple((i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))


def canny(image: Any, low: float = LOW, high: float = HIGH) -> Image.Image:
    """White lines on black, one pixel wide, where a picture changes.

    Args:
        image: a PIL picture of any mode, or an array as everywhere.
        low, high: of gradients, in 0 .. 2040: where it is above `high` a line begins, and it goes
            on while it is above `low`.

    Returns:
        A grey picture ("L") of the same size with values 0 and 255; the same as `cv2.Canny(rgb,
        low, high)` gives.

    Raises:
        InputTypeError, InputError: no such picture or numbers, or `low` above `high`.
    """
    low = checks.number("low", low, 0, _MOST)
    high = checks.number("high", high, 0, _MOST)
    if low > high:
        raise InputError(f"low={low:g} is above high={high:g}")
    pixels = np.asarray(as_picture("image", image).convert("RGB"))
    return Image.fromarray(lines(pixels, low, high).astype(np.uint8) * 255)


def lines(pixels: np.ndarray, low: float = LOW, high: float = HIGH) -> np.ndarray:
    """The same as booleans `(height, width)`, of uint8 `(height, width, 3)`."""
    across, down = _gradients(pixels)
    size = np.pad(np.abs(across) + np.abs(down), 1)  # nothing changes beyond the picture
    kept = _ridges(across, down, size) & (size[1:-1, 1:-1] > int(low))
    strong = kept & (size[1:-1, 1:-1] > int(high))
    return _connected(strong, kept)


def _gradients(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sobel's, of the channel that changes most; int32 `(height, width)`."""
    x = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = x[:-2] + 2 * x[1:-1] + x[2:]
    columns = x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]
    across, down = rows[:, 2:] - rows[:, :-2], columns[2:] - columns[:-2]
    chosen = (np.abs(across) + np.abs(down)).argmax(2)[..., None]
    return tuple(np.take_along_axis(g, chosen, 2)[..., 0] for g in (across, down))  # type: ignore[return-value]


def _ridges(across: np.ndarray, down: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Where no neighbour across the edge changes more; of equal ones the first is kept."""
    height, width = across.shape

    def beside(i: int, j: int) -> np.ndarray:
        return size[1 + i : 1 + i + height, 1 + j : 1 + j + width]

    here = size[1:-1, 1:-1]
    x, y = np.abs(across).astype(np.int64), np.abs(down).astype(np.int64) << _TURN
    flat = y < x * _TAN_22
    steep = y > x * _TAN_22 + (x << (_TURN + 1))
    alike = (across < 0) == (down < 0)
    slanted = np.where(
        alike,
        (here > beside(-1, -1)) & (here > beside(1, 1)),
        (here > beside(-1, 1)) & (here > beside(1, -1)),
    )
    level = (here > beside(0, -1)) & (here >= beside(0, 1))
    upright = (here > beside(-1, 0)) & (here >= beside(1, 0))
    return np.where(flat, level, np.where(steep, upright, slanted))


def _connected(strong: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The pixels of `kept` that are connected, also over corners, to one of `strong`."""
    found = np.pad(strong, 1)
    allowed = np.pad(kept, 1)
    width = found.shape[1]
    flat, may = found.ravel(), allowed.ravel()
    steps = np.array([i * width + j for i, j in _NEIGHBOURS])
    front = np.flatnonzero(flat)
    while front.size:
        near = (front[:, None] + steps).ravel()
        front = np.unique(near[may[near] & ~flat[near]])
        flat[front] = True
    return flat.reshape(found.shape)[1:-1, 1:-1]
