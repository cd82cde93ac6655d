"""Masks of edits: found in two predictions, read from what callers bring, used to paste back."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.errors import InputError, InputTypeError

OUTPUT_TYPES = ("np", "pil", "pt")


def mask_of_difference(
    nn: Any, source: Array, target: Array, maps: int, ratio: float, together: bool = False
) -> Array:
    """Where two predictions for the same noisy latents differ (Couairon et al. 2022, section 3.2).

    Their absolute difference is averaged over noises and channels. Values above `ratio` times its
    mean are outliers and count as that much; from half of it on a place is in the mask.

    Args:
        source, target: predictions `(images * maps, channels, height, width)` under the two texts;
            of a common factor nothing remains.
        maps: noises per image, next to each other.
        together: one mean over all images, as the peer takes it: an image's mask then depends on
            its neighbours.

    Returns `(images, height, width)` of 0 and 1; all 0 for an image without any difference.
    """
    apart = abs(nn.float32(target) - nn.float32(source))
    rows, channels, height, width = apart.shape
    spread = nn.mean(apart.reshape(rows // maps, maps * channels, height, width), (1,), False)
    mean = nn.mean(spread, (0, 1, 2) if together else (1, 2))
    return nn.cast(spread > mean * (ratio / 2), spread)


def mask_to_output(mask: np.ndarray, output_type: str, framework: Any) -> Any:
    """Masks `(images, height, width)` as the caller wants them.

    "np": integers 0 and 1 of that shape; "pil": a list of grey pictures, 0 or 255; "pt": float32
    `(images, 1, height, width)`.
    """
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(np.uint8(255) * one.astype(np.uint8)) for one in mask]
    if output_type == "pt":
        return framework.array(mask[:, None].astype(np.float32))
    return mask.astype(np.int64)


def read_mask(mask: Any, images: int, size: tuple[int, int], factor: int, framework: Any) -> Any:
    """A caller's masks as float32 numpy `(images, 1, height, width)` of 0 and 1; never in place.

    Args:
        mask: a PIL picture (its luminance), an array `(height, width)`, `(n, height, width)` or
            `(n, 1, height, width)` in [0, 1], of numpy or the backend, or a list of them; n is 1 or
            `images`. From 0.5 on a place is to be edited.
        size: height and width of the latents; masks of the picture's size, `factor` times as large,
            are averaged over each latent pixel first.

    Raises:
        InputError: another size or number, or values outside [0, 1].
        InputTypeError: something else than masks.
    """
    parts = [_numbers(one, framework) for one in (mask if _several(mask) else [mask])]
    if not parts:
        raise InputError("mask_image is an empty list; give at least one")
    if len({part.shape[1:] for part in parts}) > 1:
        raise InputError(f"mask_image holds sizes {sorted({p.shape[1:] for p in parts})}")
    read = np.concatenate(parts)
    large = (size[0] * factor, size[1] * factor)
    if read.shape[1:] == large != size:
        read = read.reshape(len(read), size[0], factor, size[1], factor).mean((2, 4))
    if read.shape[1:] != size:
        raise InputError(
            f"mask_image is {read.shape[1:]} (height, width); needed is {size}, that of the "
            f"latents, or {large}, that of the picture"
        )
    if len(read) not in (1, images):
        raise InputError(f"mask_image holds {len(read)} masks; allowed: 1 or {images}")
    if not (read.min() >= 0 and read.max() <= 1):  # false for NaN, too
        raise InputError(
            f"mask_image has values from {read.min():g} to {read.max():g}; allowed: 0 to 1"
        )
    read = np.broadcast_to(read, (images, *size))
    return (read >= 0.5).astype(np.float32)[:, None]


def paste(before: Any, after: Any, mask: np.ndarray) -> Any:
    """`after` where `mask (height, width)` is set, elsewhere `before`, value by value.

    Both are PIL pictures, of which `after` and the mask are brought to the size of `before`; or
    numpy arrays `(height, width, 3)` of one size, to which the mask is brought.
    """
    from PIL import Image

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


def _several(mask: Any) -> bool:
    return isinstance(mask, list | tuple)


def _numbers(one: Any, framework: Any) -> np.ndarray:
    """One entry as float32 `(n, height, width)`."""
    if hasattr(one, "convert"):
        return np.asarray(one.convert("L"), np.float32)[None] / np.float32(255)
    if framework.is_array(one):
        one = framework.to_numpy(one)
    if not isinstance(one, np.ndarray) or one.dtype.kind not in "biuf":
        raise InputTypeError(
            f"mask_image holds {type(one).__name__}; allowed: PIL pictures, arrays of numbers"
        )
    if one.ndim == 4 and one.shape[1] != 1:
        raise InputError(f"mask_image has shape {one.shape}; allowed: one channel")
    if one.ndim not in (2, 3, 4) or one.size == 0:
        raise InputError(
            f"mask_image has shape {one.shape}; allowed: (height, width), (n, height, width), "
            "(n, 1, height, width)"
        )
    one = one[:, 0] if one.ndim == 4 else one
    return (one[None] if one.ndim == 2 else one).astype(np.float32)
