"""What was made, put into the picture it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from underdraw.pictures import modes
from underdraw.pictures.cropping import Crop
from underdraw.pictures.writing import to_pil, to_pixels


def paste(before: Any, after: Any, mask: np.ndarray) -> Any:
    """`after` where `mask (height, width)` is set, elsewhere `before`, value by value.

    Both are PIL pictures, of which `after` and the mask are brought to the size of `before`; or
    numpy arrays `(height, width, 3)` of one size, to which the mask is brought.
    """
    if isinstance(after, Image.Image):
        before = modes.plain("image", before)
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


def originals(image: Any, pixels: np.ndarray, output_type: str) -> Sequence[Any]:
    """The pictures of a caller, as `paste_all` puts results of an output type into them.

    Args:
        image: as the caller gave it. PIL pictures keep their own size, if PIL is made, too.
        pixels: what was read of it, `(n, 3, height, width)` in [-1, 1].
    """
    given = list(image) if isinstance(image, list | tuple) else [image]
    if output_type == "pil" and all(isinstance(one, Image.Image) for one in given):
        return [modes.plain("image", one) for one in given]
    plain = to_pixels(pixels)
    return to_pil(plain) if output_type == "pil" else list(plain)


def paste_all(
    made: Any, before: Sequence[Any], masks: Sequence[np.ndarray] | np.ndarray, framework: Any
) -> Any:
    """Images of a call with the very pixels of the pictures they belong to outside the masks.

    Args:
        made: a list of PIL images; numpy `(images, height, width, 3)` or an array of the framework
            `(images, 3, height, width)`, both in [0, 1].
        before: PIL pictures, or numpy arrays `(height, width, 3)` in [0, 1] of the size of `made`;
            one for all images, or each for equally many, which are next to each other.
        masks: `(height, width)` of any size, 1 where images keep what was made; as many likewise.
    """
    framed = framework.is_array(made)
    after = framework.to_numpy(made).transpose(0, 2, 3, 1) if framed else made
    count = len(after)
    pasted = []
    for i, one in enumerate(after):
        old = before[i * len(before) // count]
        if isinstance(old, Image.Image) and isinstance(one, np.ndarray):
            old = np.asarray(old, one.dtype) / one.dtype.type(255)
        pasted.append(paste(old, one, masks[i * len(masks) // count]))
    if isinstance(made, list):
        return pasted
    whole = np.stack(pasted)
    if not framed:
        return whole
    return framework.array(
        whole.transpose(0, 3, 1, 2), dtype=made.dtype, device=getattr(made, "device", None)
    )


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
    whole = modes.plain("image", original)
    base = Image.new("RGB", whole.size)
    base.paste(part, (crop.left, crop.top))
    return Image.composite(base, whole, modes.as_mask("mask_image", mask).convert("L"))
