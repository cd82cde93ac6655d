"""What DiffEdit's calls return."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from underdraw.backends.contract import Array
from underdraw.models.outputs import Output
from underdraw.shown import html

CLEAN = "_underdraw_clean"
"""The attribute of `invert`'s tensor that holds clean latents."""


@dataclass
class DiffEditInversionPipelineOutput(Output):
    """What an inversion returns.

    `latents (images, levels, channels, height, width)` go from the noisiest level down to the one
    above the picture, as those of diffusers; `images` are pictures of all of them, image by image,
    where `decode_latents` was set. `clean (images, channels, height, width)` are the latents of the
    picture itself, None under `compat="diffusers"`; as an item or in a tuple they do not appear.
    """

    latents: Array
    images: list[Image.Image] | Any = None
    clean: Array | None = None

    def _repr_html_(self) -> str | None:
        return html(self.images)

    def to_tuple(self) -> tuple[Any, ...]:
        """What the output of diffusers holds."""
        return (self.latents,) if self.images is None else (self.latents, self.images)


@dataclass
class DiffEditOutput(Output):
    """What `edit` returns."""

    images: list[Image.Image] | Any
    """A list of PIL images, or an array, as `output_type` says."""
    mask_image: np.ndarray
    """Integers 0 and 1, `(images, height / 8, width / 8)`: 1 where the picture was to change."""
    latents: Array
    """Of the inversion, as `invert` gives them."""
    nsfw_content_detected: list[bool] | None = None
    clean: Array | None = None
    """Of the picture, as `invert` gives them."""

    def _repr_html_(self) -> str | None:
        masks = (self.mask_image * 255).astype(np.uint8)
        return html(self.images, [Image.fromarray(mask) for mask in masks])


def remember(levels: Array, clean: Array | None) -> None:
    """Let levels know the picture they lead to, where arrays of the framework hold attributes."""
    with suppress(AttributeError):
        setattr(levels, CLEAN, clean)


def remembered(levels: Any) -> Array | None:
    """The clean latents which `remember` gave."""
    return getattr(levels, CLEAN, None)
