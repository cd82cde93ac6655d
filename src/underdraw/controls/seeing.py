"""What an image tower sees in pictures, as IP-Adapters read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.models.image_processor import CLIPImageProcessor


def width_of(tower: Any, pooled: bool) -> int:
    """Of what it gives: projected embeddings, or hidden states."""
    return tower.config.projection_dim if pooled else tower.config.hidden_size


def check_tower(components: Any, pooled: bool, width: int, what: str) -> Any:
    """The image tower of a pipeline whose features have this width.

    Raises:
        InputError: there is none; `what` says what would need it.
    """
    towers = [] if components is None else [t for t in components.towers if t is not None]
    if not towers:
        raise InputError(
            f"{what}: image_encoder=None, and pictures are seen by one; give the pipeline a "
            "CLIPVisionModelWithProjection, or load_ip_adapter an image_encoder_folder"
        )
    fitting = [tower for tower in towers if width_of(tower, pooled) == width]
    if not fitting:
        raise InputError(
            f"{what}: the image_encoder gives features of width {width_of(towers[0], pooled)}, the "
            f"IP-Adapter takes {width}; it was trained with another image tower"
        )
    return fitting[0]


def seen(components: Any, tower: Any, pixels: Array, pooled: bool) -> Array:
    """What a tower gives for `(n, 3, side, side)`: embeddings `(n, width)`, or the hidden states
    before the last layer `(n, tokens, width)`."""
    with components.borrow(tower):  # where it then is, if it is offloaded
        out, embeds = tower.encode(placed(components, tower, pixels), components.ask)
    return embeds if pooled else out.hidden_states[-2]


def check_pixels(tower: Any, pictures: Sequence[Sequence[Any]]) -> None:
    """Raise an InputError for pixels `(3, side, side)` that are not of the tower's size."""
    side = tower.config.image_size
    for shape in {tuple(getattr(one, "shape", ())) for row in pictures for one in row} - {()}:
        if shape != (3, side, side):
            raise InputError(
                f"image: pixels are {shape}; the image tower takes (3, {side}, {side})"
            )


def pixels_of(components: Any, tower: Any, pictures: Sequence[Any]) -> Array:
    """PIL pictures as the tower wants them, where the pipeline computes; or pixels `(3, side,
    side)` that are so already."""
    side = tower.config.image_size
    if hasattr(pictures[0], "shape"):
        return tower.nn.concat([placed(components, tower, one)[None] for one in pictures], 0)
    processor = components.feature_extractor
    if processor is None or getattr(processor, "crop", (side, side)) != (side, side):
        processor = CLIPImageProcessor(shortest_edge=side, crop=(side, side))
    pixels = processor(images=list(pictures), return_tensors="np")["pixel_values"]
    return placed(components, tower, np.asarray(pixels))


def blank(components: Any, tower: Any) -> Array:
    """The picture `(1, 3, side, side)` that stands for none: normalised pixels of 0."""
    side, channels = tower.config.image_size, tower.config.num_channels
    return placed(components, tower, np.zeros((1, channels, side, side), np.float32))


def placed(components: Any, tower: Any, pixels: Any) -> Array:
    """Pixels in the tower's dtype, where the pipeline computes."""
    return tower._framework.array(pixels, dtype=tower.dtype, device=components.device)
