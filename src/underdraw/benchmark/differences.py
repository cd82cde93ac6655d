"""How far what two ways gave lies apart."""

from __future__ import annotations

import math
from typing import Any

QUIETEST = 1e-10
"""The least mean square that is told of a difference: 100 dB."""


def apart(made: Any, expected: Any) -> float:
    """The largest difference, of the largest value."""
    return float((made.float() - expected.float()).abs().max() / expected.float().abs().max())


def decibel(made: Any, expected: Any) -> float:
    """PSNR of pictures in [0, 1]."""
    square = float((made.float() - expected.float()).square().mean())
    return -10 * math.log10(max(square, QUIETEST))
