"""The mask of an edit: found in two predictions, and handed out."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw.backends.contract import Array

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
        together: one mean over all images, as diffusers takes it: an image's mask then depends on
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
        return [Image.fromarray(np.uint8(255) * one.astype(np.uint8)) for one in mask]
    if output_type == "pt":
        return framework.array(mask[:, None].astype(np.float32))
    return mask.astype(np.int64)
