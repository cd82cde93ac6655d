"""Masks of edits: found in two predictions, read from what callers bring, used to paste back."""

from __future__ import annotations

from typing import Any

import numpy as np

from underdraw import backends
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.models.pictures import read_masks, shrunk

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


def read_mask(nn: Any, mask: Any, images: int, size: tuple[int, int], factor: int) -> Array:
    """A caller's masks as float32 `(images, 1, height, width)` of 0 and 1, 1 where to edit.

    Args:
        mask: as `models.pictures.read_masks` takes it, one, or one per image. It has the size of
            the latents, or is brought to that of the picture: of a latent pixel at least half must
            then be set.
        size: height and width of the latents.
        factor: pixels to one latent, along each side.

    Raises:
        InputError: another number, a shape that is no mask, values outside [0, 1].
        InputTypeError: something else than masks.
    """
    framework = backends.get(nn.name)
    first: Any = mask[0] if isinstance(mask, list | tuple) and mask else mask
    found = first.size[::-1] if hasattr(first, "convert") else getattr(first, "shape", ())[-2:]
    if tuple(found) == size:
        read = read_masks("mask_image", mask, framework, *size)
    else:
        large = read_masks("mask_image", mask, framework, size[0] * factor, size[1] * factor)
        read = shrunk(nn, large, factor)
    if read.shape[0] not in (1, images):
        raise InputError(f"mask_image holds {read.shape[0]} masks; allowed: 1 or {images}")
    return nn.expand(read, (images, *read.shape[1:]))


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
