"""How far pictures follow a map. Pure functions of maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from underdraw.errors import InputError

from .images import as_mask, same_length

TOLERANCE = 1
"""Pixels, in each direction: a line there is the same line (1.4 pixels over corners is what
Martin et al. 2004 allow in pictures of this size, 0.0075 of the diagonal)."""


@dataclass(frozen=True)
class EdgeScores:
    """Means over pictures. `precision`: of the lines of a picture, what lies on lines of the map;
    `recall`: of those of the map, what the picture shows; `f1`: their harmonic mean."""

    f1: float
    precision: float
    recall: float


@dataclass(frozen=True)
class DepthScores:
    """Means over pictures of the correlation (Pearson) of what the estimator tells with the map:
    `whole` over all of a picture, `things` over what its things add to the empty table, which
    explains most of the former."""

    whole: float
    things: float


def score_edges(found: Sequence[Any], wanted: Sequence[Any]) -> EdgeScores:
    """Lines of pictures against those of maps, bool `(height, width)` each.

    Raises:
        InputError: shapes or lengths differ, or there are none.
    """
    same_length(found=found, wanted=wanted)
    pairs = [edge_rates(a, b) for a, b in zip(found, wanted, strict=True)]
    each = [(_harmonic(p, r), p, r) for p, r in pairs]
    return EdgeScores(*(float(np.mean(column)) for column in zip(*each, strict=True)))


def edge_rates(found: Any, wanted: Any, tolerance: int = TOLERANCE) -> tuple[float, float]:
    """Precision and recall of one picture; 1 where there is no line to be judged.

    Raises:
        InputError: shapes differ, or are none of masks.
    """
    a, b = as_mask(found, "found"), as_mask(wanted, "wanted")
    _same_shape(a, b)
    near_a, near_b = widened(a, tolerance), widened(b, tolerance)
    precision = float(near_b[a].mean()) if a.any() else 1.0
    return precision, float(near_a[b].mean()) if b.any() else 1.0


def widened(lines: np.ndarray, reach: int) -> np.ndarray:
    """All pixels that lie up to `reach` from one of `lines`, in each direction."""
    for axis in (0, 1):
        padded = np.pad(lines, [(reach, reach) if i == axis else (0, 0) for i in (0, 1)])
        size = lines.shape[axis]
        shifted = [padded.take(range(i, i + size), axis) for i in range(2 * reach + 1)]
        lines = np.any(shifted, 0)
    return lines


def score_depth(
    found: Sequence[np.ndarray], wanted: Sequence[np.ndarray], empty: Sequence[np.ndarray]
) -> DepthScores:
    """Inverse depth of pictures against that of maps, `(height, width)` each.

    Args:
        empty: the same of each map's table without its things, in the units of the map.

    Raises:
        InputError: shapes or lengths differ, or there are none.
    """
    same_length(found=found, wanted=wanted, empty=empty)
    whole, things = [], []
    for a, b, table in zip(found, wanted, empty, strict=True):
        _same_shape(a, b)
        whole.append(correlation(a, b))
        slope, offset = np.polyfit(a.ravel(), b.ravel(), 1) if np.ptp(a) else (0.0, 0.0)
        things.append(correlation(slope * a + offset - table, b - table))
    return DepthScores(float(np.mean(whole)), float(np.mean(things)))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, in [-1, 1]; 0 where one of them is the same everywhere."""
    x, y = (v.astype(np.float64).ravel() - v.mean(dtype=np.float64) for v in (a, b))
    sizes = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / sizes) if sizes > 1e-12 else 0.0


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b else 0.0


def _same_shape(a: np.ndarray, b: np.ndarray) -> None:
    if a.shape != b.shape:
        raise InputError(f"found has shape {a.shape}, wanted {b.shape}; allowed: the same")
