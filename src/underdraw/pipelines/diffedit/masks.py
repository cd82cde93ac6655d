"""The mask of an edit: found in two predictions, and handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw.backends.contract import Array

OUTPUT_TYPES = ("np", "pil", "pt")
ASIDE = 0.5
"""Of the greatest part of a mask: what a part must have to stay."""


def difference(nn: Any, source: Array, target: Array, maps: int) -> Array:
    """How far two predictions for the same noisy latents differ, absolute, averaged over noises and
    channels (Couairon et al. 2022, section 3.2): `(images, height, width)`, float32.

    Args:
        source, target: predictions `(images * maps, channels, height, width)` under the two texts.
        maps: noises per image, next to each other.
    """
    apart = abs(nn.float32(target) - nn.float32(source))
    rows, channels, height, width = apart.shape
    return nn.mean(apart.reshape(rows // maps, maps * channels, height, width), (1,), False)


def by_mean(nn: Any, spread: Array, ratio: float, together: bool = False) -> Array:
    """The masks of differences `(images, height, width)`, of 0 and 1, as in the paper.

    Values above `ratio` times the mean are outliers and count as that much; from half of it on a
    place is in the mask. A common factor changes nothing; without any difference all is 0.

    Args:
        together: one mean over all images, as diffusers takes it: an image's mask then depends on
            its neighbours.
    """
    mean = nn.mean(spread, (0, 1, 2) if together else (1, 2))
    return nn.cast(spread > mean * (ratio / 2), spread)


def by_classes(spread: np.ndarray) -> np.ndarray:
    """The masks of differences `(images, height, width)`, of 0 and 1, by no number that one has to
    choose.

    The threshold divides an image's values into the two classes whose means are furthest apart: it
    maximises `w0 * w1 * (m1 - m0)^2`, with shares `w` and means `m` of the classes (Otsu 1979, "A
    Threshold Selection Method from Gray-Level Histograms", eq. 18), here over the values themselves
    instead of a histogram. The mean alone (`by_mean`) grows with the mask, so that one ratio gives
    a small change too large a mask and a large change too small a one. A common factor changes
    nothing; where all values are equal all is 0.
    """
    values = np.sort(spread.reshape(len(spread), -1).astype(np.float64), 1)
    count = np.arange(1, values.shape[1] + 1)  # of the lower class, which ends with that value
    low = values.cumsum(1)
    whole = low[:, -1:]
    # w0 w1 (m1 - m0)^2 = (whole * count / all - low)^2 / (count * (all - count)); 0 for one class.
    shares = np.maximum(count * (count[-1] - count), 1)
    between = (whole * count / count[-1] - low) ** 2 / shares
    threshold = np.take_along_axis(values, between.argmax(1)[:, None], 1)
    return (spread > threshold[:, :, None]).astype(spread.dtype)


def without_asides(masks: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Masks `(images, height, width)` of 0 and 1 without their lesser parts: places that hang
    together side by side, and by which the differences `spread` exceed the least one in the mask by
    less than `ASIDE` of what the greatest part has. Two texts that differ in one thing say
    something else of others, too; where they say little, it is not what was to change."""
    labels = _parts(masks)
    for image, part in enumerate(labels):
        if not part.any():
            continue
        excess = (spread[image] - spread[image][part > 0].min()) * (part > 0)
        sums = np.bincount(part.ravel(), excess.ravel())
        labels[image] *= (sums >= ASIDE * sums[1:].max())[part]
    return (labels > 0).astype(masks.dtype)


def _parts(masks: np.ndarray) -> np.ndarray:
    """In each image of masks the number of the part that a place belongs to, 0 outside."""
    inside = np.pad(masks > 0, ((0, 0), (1, 1), (1, 1)))
    numbers = np.arange(1, 1 + inside[0].size).reshape(inside.shape[1:])
    labels, before = numbers * inside, None
    while before is None or (labels != before).any():
        before, labels = labels, labels.copy()
        labels[:, 1:] = np.maximum(labels[:, 1:], before[:, :-1])
        labels[:, :-1] = np.maximum(labels[:, :-1], before[:, 1:])
        labels[..., 1:] = np.maximum(labels[..., 1:], before[..., :-1])
        labels[..., :-1] = np.maximum(labels[..., :-1], before[..., 1:])
        labels *= inside
    return labels[:, 1:-1, 1:-1]


def filled(masks: np.ndarray) -> np.ndarray:
    """Masks `(images, height, width)` of 0 and 1 with their holes: places from which no way from
    side to side leads to the picture's edge around the mask. Inside a large plain thing the two
    texts say much the same, and what is left there stays behind when the thing goes."""
    inside = np.pad(masks > 0, ((0, 0), (1, 1), (1, 1)))
    outside = np.ones_like(inside)
    outside[:, 1:-1, 1:-1] = False
    reached = 0
    while reached < (reached := int(outside.sum())):
        beside = outside.copy()
        beside[:, 1:] |= outside[:, :-1]
        beside[:, :-1] |= outside[:, 1:]
        beside[..., 1:] |= outside[..., :-1]
        beside[..., :-1] |= outside[..., 1:]
        outside = beside & ~inside
    return (~outside[:, 1:-1, 1:-1]).astype(masks.dtype)


def mask_to_output(mask: np.ndarray, output_type: str, framework: Any) -> Any:
    """Masks `(images, height, width)` as the caller wants them.

    "np": integers 0 and 1 of that shape; "pil": a list of grey pictures, 0 or 255; "pt": float32
    `(images, 1, height, width)`.
    """
    if output_type == "pil":
        return [Image.fromarray(np.uint8(255) * one.astype(np.uint8)) for one in mask]
    if output_type == "pt":
        return framework.array(mask[:, None].astype(np.float32))
    return mask.astype(np.int64)
