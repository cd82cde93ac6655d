"""What was made, put into the picture it belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw.pictures.reading import Crop


def paste(before: Any, after: Any, mask: np.ndarray) -> Any:
    """`after` where `mask (height, width)` is set, elsewhere `before`, value by value.

    Both are PIL pictures, of which `after` and the mask are brought to the size of `before`; or
    numpy arrays `(height, width, 3)` of one size, to which the mask is brought.
    """
    if isinstance(after, Image.Image):
        before = before.convert("RGB")
        if after.size != before.size:
            after = after.resize(before.size, Image.Resampling.LANCZOS)
        cells = Image.fromarray(np.uint8(255) * (mask >= 0.5).astype(np.uint8))
        made = before.copy()
        made.paste(after, mask=cells.resize(before.size, Image.Resampling.NEAREST))
        return made
    height, width = after.shape[:2]
    rows = np.arange(height) * mask.shape[0] // height
    columns = np.arange(width) * mask.shape[1] // width
    inside = mask[rows][:, columns] >= 0.5
    return np.where(inside[:, :, None], after, before)


def overlaid(original: Any, made: Any, mask: Any, crop: Crop) -> Any:
    """A PIL picture whose part `crop` was made anew, put back where the PIL mask is set; grey mask
    values blend."""
    wide, high = crop.right - crop.left, crop.bottom - crop.top
    across = wide / high > made.width / made.height
    # Undo the fit into the size of the run: as large as covers the part, then its middle.
    inner = (wide, made.height * wide // made.width)
    inner = inner if across else (made.width * high // made.height, high)
    part = Image.new("RGB", (wide, high))
    small = made.resize(inner, Image.Resampling.LANCZOS)
    part.paste(small, (wide // 2 - inner[0] // 2, high // 2 - inner[1] // 2))
    whole = original.convert("RGB")
    base = Image.new("RGB", whole.size)
    base.paste(part, (crop.left, crop.top))
    return Image.composite(base, whole, mask.convert("L"))
