"""How a pipeline runs its networks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """How one pipeline runs its networks; two pipelines on shared weights may differ."""

    attention_slice: int | str | None = None
    vae_slicing: bool = False
    vae_tiling: bool = False
