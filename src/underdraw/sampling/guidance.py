"""Classifier-free guidance (Ho & Salimans 2022): both halves of a prediction put together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from underdraw.backends.contract import Array, Operations


@dataclass(frozen=True, eq=False)
class Guidance:
    """How far predictions are led away from the unconditional ones."""

    scale: Any
    """A number, or `(images, 1, 1, 1)`."""
    rescale: float | None = None
    """How far the standard deviation of the conditional prediction is restored (Lin et al. 2023,
    section 3.4); None: not at all."""


def guide(nn: Operations, guidance: Guidance, out: Array) -> Array:
    """Of a prediction with both halves, `(2 * images, ...)`, unconditional rows first."""
    half = out.shape[0] // 2
    return guided(nn, guidance, out[:half], out[half:])


def guided(nn: Operations, guidance: Guidance, unconditional: Array, conditional: Array) -> Array:
    """Of the halves, each `(images, ...)`."""
    led = unconditional + guidance.scale * (conditional - unconditional)
    if guidance.rescale is None:
        return led
    axes = (1, 2, 3)
    matched = led * (nn.std(conditional, axes) / nn.std(led, axes))
    return guidance.rescale * matched + (1 - guidance.rescale) * led
