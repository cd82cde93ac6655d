"""Values of controls that may be one for all images of a call, or one for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from underdraw import checks
from underdraw.controls.strength import ALWAYS, Strength, as_strength


def each_of(name: str, value: Any) -> Sequence[Any]:
    """One number for all images, or a list with one per image."""
    if hasattr(value, "tolist") and getattr(value, "shape", ()) == ():
        return (value.item(),) if hasattr(value, "item") else (value,)
    if isinstance(value, list | tuple) or hasattr(value, "shape"):
        return checks.numbers(name, value)
    return (value,)


def strengths_of(value: Any) -> tuple[Strength, ...]:
    """One strength for all images, or a list with one per image; None: always fully."""
    if value is None:
        return (ALWAYS,)
    several = isinstance(value, list | tuple) and value
    if several and all(isinstance(one, Strength | list | tuple) for one in value):
        return tuple(as_strength(one) for one in value)
    return (as_strength(value),)


def together(*lists: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Entries of lists of one length or of one entry, image by image."""
    count = max(map(len, lists))
    return [tuple(one[i % len(one)] for one in lists) for i in range(count)]
