"""What the loop hands out after a model call, and what a consumer may send back."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from underdraw.backends.contract import Array
from underdraw.shown import of_fields

BROKEN = (
    "the first step gave NaN or infinity; the weights or the inputs hold such values, or the dtype "
    "is too narrow for this model (look at the weights with `underdraw info --check`, or try "
    "dtype='float32')"
)
LATER = "the latents became NaN or infinity after the first step"


class Step(NamedTuple):
    """What a consumer sees after a model call."""

    index: int
    timestep: float
    latents: Array
    """`(batch, channels, height, width)` after the call, float32."""
    clean: Callable[[], Array]
    """The image the model aims at now, as latents; computed when asked for, for previews."""

    def __repr__(self) -> str:
        return of_fields(self, "index", "timestep", "latents")


class Change(NamedTuple):
    """What a consumer may send back; None leaves things as they are."""

    latents: Array | None = None
    context: Array | None = None


UNWATCHED = Change()
"""Sent back by whoever needs no more steps, as a call that only waits for its end: an engine that
compiles whole loops may make several at once."""
