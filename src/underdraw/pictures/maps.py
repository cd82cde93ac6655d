"""Maps that say for each place what is to be there, as networks take them: numbers in [0, 1], red
first; -1 where a map leaves a place open (inpainting)."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.errors import InputError, InputTypeError
from underdraw.pictures import modes
from underdraw.pictures.reading import as_picture, nearest, on_the_host

OPEN = -1.0
"""Of a pixel that a map leaves open."""
Map = Image.Image | np.ndarray
"""A picture in RGB or grey, or float32 `(channels, height, width)`."""


class Maps(tuple[Map, ...]):
    """Maps that were read."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the first, in pixels."""
        first = self[0]
        if isinstance(first, Image.Image):
            return first.height, first.width
        return first.shape[1], first.shape[2]

    def repeated(self, times: int) -> Maps:
        """Each so many times, next to each other."""
        return Maps(one for one in self for _ in range(times))


def read_maps(name: str, given: Any) -> Maps:
    """Maps, one by one; those that were read stay as they are.

    Args:
        name: of the argument, for errors.
        given: a PIL picture of any mode; an array of numpy `(height, width)`, `(height, width,
            channels)` or `(maps, height, width, channels)`, or of a framework `(height, width)`,
            `(channels, height, width)` or `(maps, channels, height, width)`: 1 or 3 channels,
            uint8, uint16 or numbers in [0, 1], and -1 for a pixel that is left open; or a list.

    Raises:
        InputTypeError, InputError: no such map, none at all, or NaN in one.
    """
    if isinstance(given, Maps):
        return given
    parts = list(given) if isinstance(given, list | tuple) else [given]
    if not parts:
        raise InputError(f"{name} is an empty list; give at least one map")
    return Maps(one for part in parts for one in _read(name, part))


def sized(name: str, maps: Maps, channels: int, height: int, width: int) -> np.ndarray:
    """Maps as float32 `(maps, channels, height, width)`. Pictures are resized (Lanczos), of arrays
    the nearest pixels are taken.

    Raises:
        InputError: see `check_channels`.
    """
    check_channels(name, maps, channels)
    return np.stack([_sized(name, one, channels, height, width) for one in maps])


def check_channels(name: str, maps: Maps, channels: int) -> None:
    """Raise an InputError where `sized` could not give so many channels."""
    for one in maps:
        found = 3 if isinstance(one, Image.Image) else one.shape[0]
        # Grey maps serve for all channels, and pictures become grey.
        if found not in (1, channels) and not (channels == 1 and isinstance(one, Image.Image)):
            raise InputError(f"{name} has {found} channels; the network takes {channels}")


def masked_map(image: Any, mask: Any) -> np.ndarray:
    """A picture as the map of an inpainting ControlNet: `(height, width, 3)` in [0, 1], and -1
    where the mask is set.

    Args:
        image: a PIL picture, or an array of one as everywhere.
        mask: a PIL picture of any size, or an array `(height, width)` in [0, 1] or uint8; a pixel
            is masked from the middle of the range on.

    Raises:
        InputTypeError, InputError: they are no such picture and mask.
    """
    picture = as_picture("image", image)
    read = read_maps("mask", modes.as_mask("mask", mask) if _is_pil(mask) else mask)
    if len(read) != 1:
        raise InputError(f"mask holds {len(read)} masks; allowed: one for the picture")
    covered = _sized("mask", read[0], 1, picture.height, picture.width)[0]
    pixels = np.asarray(picture, np.float32) / np.float32(255)
    return np.where(covered[:, :, None] >= 0.5, np.float32(OPEN), pixels)


def _is_pil(value: Any) -> bool:
    return isinstance(value, Image.Image)


def _read(name: str, part: Any) -> list[Map]:
    if _is_pil(part):
        return [modes.plain(name, part)]
    numpy = isinstance(part, np.ndarray)
    if not numpy and not (hasattr(part, "__array__") and hasattr(part, "shape")):
        raise InputTypeError(
            f"{name}={checks.shown(part)} is no map; allowed: PIL pictures, arrays, a list of them"
        )
    modes.check_pixels(name, tuple(part.shape))
    x = part if numpy else checks.readable(name, part, on_the_host)
    shape = tuple(x.shape)
    if x.ndim == 2:
        x = x[None, None]
    elif x.ndim in (3, 4):
        x = x[None] if x.ndim == 3 else x
        x = x.transpose(0, 3, 1, 2) if numpy else x
    if x.ndim != 4 or 0 in x.shape or x.shape[1] not in (1, 3):
        order = "height, width, channels" if numpy else "channels, height, width"
        raise InputError(
            f"{name} has shape {shape}; allowed: (height, width), ({order}), (maps, {order}), with "
            "1 or 3 channels"
        )
    if x.dtype.kind not in "biuf":
        raise InputTypeError(f"{name} has dtype {x.dtype}; allowed: numbers")
    x = modes.unit(x)
    if not (((x >= 0) & (x <= 1)) | (x == OPEN)).all():  # false for NaN, too
        raise InputError(
            f"{name} has values from {float(x.min()):g} to {float(x.max()):g}; allowed: 0 to 1, "
            "and -1 for pixels that are left open"
        )
    return list(x)


def _sized(name: str, one: Map, channels: int, height: int, width: int) -> np.ndarray:
    if isinstance(one, Image.Image):
        one = one.convert("L") if channels == 1 else one
        pixels = np.asarray(one.resize((width, height), Image.Resampling.LANCZOS), np.float32)
        pixels = pixels / np.float32(255)
        x = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
    else:
        x = nearest(one[None], height, width)[0]
        x = np.repeat(x, channels, 0) if x.shape[0] == 1 else x
    return x
