"""How a pipeline runs its networks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from underdraw.controls.acceleration.presets import Acceleration
from underdraw.schema import OneOf, Range, Schema

SEAMLESS = "seamless"
LATER = ("freeu", "acceleration")
Amount = Annotated[float, Range(0, 1000)]
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
    vae_tiling: bool | Annotated[str, OneOf(SEAMLESS)] = False
    freeu: tuple[Amount, Amount, Amount, Amount] | None = None
    """`s1, s2, b1, b2` of FreeU."""
    acceleration: Acceleration | None = None
    """What calls leave out; None: nothing."""

    def recorded(self) -> dict[str, Any]:
        """What a picture holds of them: of those that came later only what is on."""
        fields = asdict(self)
        if self.acceleration is not None:
            fields["acceleration"] = self.acceleration.recorded()
        return {name: value for name, value in fields.items() if value or name not in LATER}
