"""Self-attention over many positions, which costs the square of their number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from underdraw.backends.contract import Array, Operations
from underdraw.controls.acceleration.method import Method
from underdraw.controls.control import Call, Control
from underdraw.controls.run import Run
from underdraw.networks.sites import NO_SITES, Sites
from underdraw.schema import Range

SCALE = 8
"""Pixels of a position where no autoencoder says it."""


@dataclass(frozen=True)
class TokenDownsampling(Method):
    """At the UNet's highest resolution self-attention attends to every n-th row and column alone
    (Smith et al. 2024, "ToDo", section 3); attention whose probabilities a control looks at stays
    whole.

    Args:
        factor: 2 to 8; keys and values become `factor ** 2` times fewer.
        least: the side in pixels of a square that pictures must not be smaller than; in smaller
            ones everything is computed, for there attention costs little.

    Raises:
        InputError: a number is out of its range.
    """

    owner = "TokenDownsampling"

    factor: Annotated[int, Range(2, 8)] = 2
    least: Annotated[int, Range(8, 65536)] = 768

    def control(self) -> Control:
        return _Fewer(self)


@dataclass(frozen=True)
class Nearest:
    """The hook: of each square of so many positions the first one."""

    height: int
    width: int
    factor: int

    def __call__(self, nn: Operations, place: str, x: Array) -> Array:
        rows, tokens, channels = x.shape
        if tokens != self.height * self.width:
            return x
        f, height, width = self.factor, self.height // self.factor, self.width // self.factor
        x = x.reshape(rows, self.height, self.width, channels)[:, : height * f, : width * f]
        x = x.reshape(rows, height, f, width, f * channels)[:, :, 0, :, :channels]
        return x.reshape(rows, height * width, channels)


@dataclass(frozen=True)
class _Fewer(Control):
    method: TokenDownsampling

    def prepare(self, run: Run) -> Sites:
        height, width = run.latents.shape[2:]
        parts, f = run.components, self.method.factor
        scale = SCALE if parts is None else parts.vae.config.factor
        if height * width * scale**2 < self.method.least**2 or min(height, width) < f:
            return NO_SITES
        return Sites(keys=Nearest(height, width, f))

    def before_call(
        self, nn: Operations, carry: Sites, latents: Array, call: Call
    ) -> tuple[Array, Sites, Sites]:
        return latents, carry, carry
