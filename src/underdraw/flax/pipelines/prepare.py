"""Pictures as Flax's pipelines take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from underdraw import checks
from underdraw.backends.contract import Array
from underdraw.errors import InputError
from underdraw.flax.params import jax
from underdraw.pictures.modes import as_mask, plain


def pictures(name: str, value: Any, multiple: int) -> Array:
    """PIL pictures, one or a list, as `(n, 3, height, width)` in [0, 1], float32; sides are rounded
    down to a multiple.

    Raises:
        InputError, InputTypeError: there is none, they are smaller, or unlike in size.
    """
    found = [
        np.asarray(one.resize(_sides(name, one, multiple), Image.Resampling.LANCZOS), np.float32)
        for one in (plain(name, each) for each in _listed(name, value))
    ]
    return jax().array(_stacked(name, found).transpose(0, 3, 1, 2) / 255)


def masks(name: str, value: Any, multiple: int) -> Array:
    """PIL masks, one or a list, as `(n, 1, height, width)` of 0 and 1; sides as of `pictures`."""
    found = []
    for each in _listed(name, value):
        one = as_mask(name, each)
        one = one.resize(_sides(name, one, multiple)).convert("L")
        found.append(np.asarray(one, np.float32) / 255 >= 0.5)
    return jax().array(_stacked(name, found)[:, None].astype(np.float32))


def _listed(name: str, value: Any) -> list[Any]:
    listed: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    if not listed:
        raise InputError(f"{name} is empty; at least one picture is needed")
    return [checks.picture(name, one) for one in listed]


def _sides(name: str, picture: Any, multiple: int) -> tuple[int, int]:
    width, height = (side - side % multiple for side in picture.size)
    if not (width and height):
        raise InputError(
            f"{name} has {picture.size[0]} x {picture.size[1]} pixels; allowed: {multiple} or more"
        )
    return width, height


def _stacked(name: str, found: list[np.ndarray]) -> np.ndarray:
    if len({one.shape for one in found}) > 1:
        raise InputError(f"{name} has pictures of unlike size; allowed: one size")
    return np.stack(found)
