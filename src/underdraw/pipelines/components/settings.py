"""How a pipeline runs its networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from underdraw.schema import OneOf, Range, Schema

MOST_SLICES = 2**16
"""Heads that are attended at a time, more than any network has."""


@dataclass(frozen=True)
class Settings(Schema):
    """How one pipeline runs its networks; two pipelines on shared weights may differ."""

    owner = "settings"

    attention_slice: (
        Annotated[int, Range(1, MOST_SLICES)] | Annotated[str, OneOf("auto", "max")] | None
    ) = None
    vae_slicing: bool = False
    vae_tiling: bool = False
