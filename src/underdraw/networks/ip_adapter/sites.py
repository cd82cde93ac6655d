"""An IP-Adapter at work inside a UNet call: attention to pictures beside that to the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from underdraw.backends.contract import Array, Operations
from underdraw.networks.layers import KeysValues


@dataclass(frozen=True)
class ImageAttention:
    """The hook `beside_cross_attention`: what the positions of a picture find in other pictures is
    added to what they find in the text (Ye et al. 2023, equation 5)."""

    keys: Mapping[str, KeysValues]
    """By place, keys and values `(1 or rows, heads, n, d)`; nothing is added elsewhere."""
    scales: Mapping[str, Array]
    """By place how much is added, `(1 or rows, 1, 1, 1)`."""
    masks: Mapping[str, Array] = field(default_factory=dict)
    """By place where, `(1 or rows, 1, positions, 1)`; everywhere where it is empty."""

    def __call__(self, nn: Operations, place: str, q: Array) -> Array | None:
        if place not in self.keys:
            return None
        k, v = (nn.expand(nn.cast(x, q), (q.shape[0], *x.shape[1:])) for x in self.keys[place])
        found = nn.attention(q, k, v)
        if place in self.masks:
            found = found * nn.cast(self.masks[place], found)
        return found * nn.cast(self.scales[place], found)

    def together(self, nn: Operations, other: Any, rows: tuple[int, int]) -> ImageAttention | None:
        """One hook for the rows of two runs, this one's first; None where they act at other places,
        or on other numbers of tokens.

        Args:
            rows: how many each of them has.
        """
        if not isinstance(other, ImageAttention) or set(self.keys) != set(other.keys):
            return None
        if set(self.masks) != set(other.masks):
            return None
        if any(self.keys[at][0].shape[2] != other.keys[at][0].shape[2] for at in self.keys):
            return None

        def joined(a: Array, b: Array) -> Array:
            pairs = zip((a, b), rows, strict=True)
            return nn.concat([nn.expand(x, (count, *x.shape[1:])) for x, count in pairs], 0)

        return ImageAttention(
            {
                at: (joined(k, other.keys[at][0]), joined(v, other.keys[at][1]))
                for at, (k, v) in self.keys.items()
            },
            {at: joined(scale, other.scales[at]) for at, scale in self.scales.items()},
            {at: joined(mask, other.masks[at]) for at, mask in self.masks.items()},
        )

    def __repr__(self) -> str:
        return f"ImageAttention({len(self.keys)} places)"
