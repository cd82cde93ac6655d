"""FreeU (Si et al. 2023): in the first two blocks on the way up, more of the backbone's features
and less of the lowest frequencies that skip connections bring."""

from __future__ import annotations

import math
from dataclasses import dataclass

from underdraw.backends.contract import Array, Operations

PLACES = ("up_blocks.0", "up_blocks.1")


@dataclass(frozen=True)
class FreeU:
    """A hook at `join`: factors of the skip connections' low frequencies (`s1`, `s2`) and of half
    of the backbone's channels (`b1`, `b2`), in the first and the second block on the way up."""

    s1: float
    s2: float
    b1: float
    b2: float

    def __call__(
        self, nn: Operations, place: str, hidden: Array, skip: Array
    ) -> tuple[Array, Array]:
        if place not in PLACES:
            return hidden, skip
        first = place == PLACES[0]
        half, factor = hidden.shape[1] // 2, self.b1 if first else self.b2
        hidden = nn.concat((hidden[:, :half] * factor, hidden[:, half:]), 1)
        low = lowest(nn, nn.float32(skip))
        scale = self.s1 if first else self.s2
        return hidden, nn.cast(nn.float32(skip) + (scale - 1) * low, skip)


def lowest(nn: Operations, x: Array) -> Array:
    """The part of maps `(batch, channels, height, width)` whose frequencies are 0 or -1 along each
    side, real part: what the paper's filter with threshold 1 scales.

    Four inner products instead of two Fourier transforms.
    """
    height, width = x.shape[2:]
    down = nn.arange(height, x).reshape(1, 1, height, 1) * (2 * math.pi / height)
    right = nn.arange(width, x).reshape(1, 1, 1, width) * (2 * math.pi / width)
    low = nn.mean(x, (2, 3))
    angles = [down] if height > 1 else []
    angles += [right] if width > 1 else []
    angles += [down + right] if height > 1 and width > 1 else []
    for angle in angles:
        for wave in (nn.cos(angle), nn.sin(angle)):
            low = low + nn.mean(x * wave, (2, 3)) * wave
    return low
