"""`InpaintingChannels`: what UNets with nine input channels see besides the latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from underdraw import checks
from underdraw.backends.contract import Array, Operations
from underdraw.controls.control import Call, Planned, Run
from underdraw.controls.steady import Steady
from underdraw.errors import InputError, InputTypeError
from underdraw.networks.sites import Sites


class Channels(NamedTuple):
    """The carry: `mask (images, 1, h, w)` and `masked (images, channels, h, w)`."""

    mask: Array
    masked: Array


@dataclass(frozen=True, eq=False)
class InpaintingChannels(Steady):
    """The mask and the masked picture, joined to the latents before the first convolution.

    Args:
        mask: `(1 or images, 1, height, width)` of the latents' size, 1 where the picture is to be
            made anew.
        masked: latents `(1 or images, channels, height, width)`, times `scaling_factor`, of the
            picture with the mask's inside grey.

    Raises (when the call begins, before anything is computed):
        InputError, InputTypeError: an array that does not fit the latents of the run.
    """

    mask: Array
    masked: Array

    def check(self, planned: Planned) -> None:
        """That mask and picture have the size of the latents."""
        images, channels, *sides = planned.shape
        for name, value, count in (("mask", self.mask, 1), ("masked", self.masked, channels)):
            if not planned.framework.is_array(value):
                raise InputTypeError(f"{name}={checks.shown(value)}; an array is needed")
            found, needed = tuple(value.shape), (count, *sides)
            if len(found) != 4 or found[0] not in (1, images) or found[1:] != needed:
                told = ", ".join(map(str, needed))
                raise InputError(f"{name} has shape {found}; needed is (1 or {images}, {told})")
            checks.array(name, value, found, planned.framework)

    def prepare(self, run: Run) -> Channels:
        """A row for each image."""

        def each(value: Array) -> Array:
            value = run.framework.array(value, device=getattr(run.latents, "device", None))
            return run.nn.expand(run.nn.float32(value), (run.batch, *value.shape[1:]))

        return Channels(each(self.mask), each(self.masked))

    def sites_at(self, nn: Operations, carry: Channels, like: Array, call: Call) -> Sites:
        return Sites(model_input=(FurtherChannels(tuple(carry)),))


@dataclass(frozen=True, eq=False)
class FurtherChannels:
    """The hook `model_input`: channels beside those of the latents."""

    added: tuple[Array, ...]
    """Each `(images, channels, height, width)`; under guidance both halves get them."""

    def __call__(self, nn: Operations, x: Array) -> Array:
        added = self.added[0] if len(self.added) == 1 else nn.concat(self.added, 1)
        rows = nn.concat((added,) * (x.shape[0] // added.shape[0]), 0)
        return nn.concat((x, nn.cast(rows, x)), 1)
