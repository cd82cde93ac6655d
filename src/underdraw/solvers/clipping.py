"""Bounds of the clean image that a solver sees in an output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple


class Clip(NamedTuple):
    """Bounds of the clean image: `[-bound, bound]`; with `ratio`, dynamic thresholding (Saharia et
    al. 2022, section 2.3): that quantile of `|clean|` per image, at least 1 and at most `bound`,
    bounds it, and divides it."""

    bound: float
    ratio: float | None = None


def clipped(nn: Any, clips: Sequence[tuple[Clip, Any]], clean: Any) -> Any:
    """The clean image inside its bounds; each comes with the images it holds for, as 0 or 1 per
    image, None for all. Images without bounds in a mixed batch give 0."""
    total = None
    for (bound, ratio), share in clips:
        if ratio is None:
            part = nn.clip(clean, -bound, bound)
        else:
            size = nn.clip(nn.quantile_abs(clean, ratio), min(1.0, bound), bound)
            size = nn.cast(size[:, None, None, None], clean)
            part = nn.clip(clean, -size, size) / size
        part = part if share is None else part * share
        total = part if total is None else total + part
    return total
