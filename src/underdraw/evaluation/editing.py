"""What an edit changed and what it left alone. Pure functions of pictures, masks, detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw.errors import InputError

from .boxes import box_iou
from .detector import Detection
from .images import as_boxes, as_image, as_mask
from .rates import Rate


def mask_iou(first: Any, second: Any) -> float:
    """Intersection over union of two masks (height, width); 1.0 when both are empty."""
    a, b = as_mask(first, "first"), as_mask(second, "second")
    if a.shape != b.shape:
        raise InputError(f"first has shape {a.shape}, second {b.shape}")
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def background_change(before: Any, after: Any, mask: Any) -> float:
    """Mean absolute difference outside `mask` (height, width), in [0, 1]: 2/255 is 0.0078.

    `before` and `after` are pictures (height, width, 3). Raises InputError for different shapes,
    or a mask that leaves nothing outside.
    """
    a, b, m = as_image(before, "before"), as_image(after, "after"), as_mask(mask)
    if a.shape != b.shape or a.shape[:2] != m.shape:
        raise InputError(f"before has shape {a.shape}, after {b.shape}, mask {m.shape}")
    if m.all():
        raise InputError("mask covers the whole picture; nothing is left to compare")
    return float(np.abs(a[~m].astype(np.float64) - b[~m]).mean())


def psnr(image: Any, reference: Any) -> float:
    """Peak signal to noise ratio in dB of two pictures (height, width, 3) with peak 1; inf when
    they are equal."""
    a, b = as_image(image), as_image(reference, "reference")
    if a.shape != b.shape:
        raise InputError(f"image has shape {a.shape}, reference {b.shape}")
    error = float(((a.astype(np.float64) - b) ** 2).mean())
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def unchanged_objects(
    before: Sequence[Detection],
    after: Sequence[Detection],
    edited: Any = (),
    overlap: float = 0.5,
) -> Rate:
    """Of the things seen before, other than the edited ones, those still there: same shape and
    colours, boxes with an IoU of at least `overlap`; nothing afterwards stands for two.

    `edited`: boxes (n, 4) of what was to change; each takes out the thing seen before that overlaps
    it most, if by an IoU of at least 0.3. For the upper bound give the detections of the real
    picture after the change.
    """
    others = list(before)
    for box in as_boxes(edited, "edited"):
        if not others:
            break
        shared = box_iou([box], [d.box for d in others])[0]
        if shared.max() >= 0.3:
            del others[int(shared.argmax())]
    left = list(after)
    kept = 0
    for thing in others:
        iou = box_iou([thing.box], [d.box for d in left])[0]
        same = [k for k, other in enumerate(left) if iou[k] >= overlap and _same(thing, other)]
        if same:
            del left[max(same, key=lambda k: float(iou[k]))]
            kept += 1
    return Rate(kept, len(others))


def _same(a: Detection, b: Detection) -> bool:
    return a.shape == b.shape and {a.colour, a.second_colour} == {b.colour, b.second_colour}
