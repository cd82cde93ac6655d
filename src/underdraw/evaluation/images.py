"""Pictures as one array, checked before anything is judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from underdraw.errors import InputError, InputTypeError
from underdraw.pictures import modes

SMALLEST = 32


def as_images(images: Any, name: str = "images") -> np.ndarray:
    """float32 (n, height, width, 3) in [0, 1] out of an array of that shape or a sequence of
    (height, width, 3) arrays or PIL pictures of one size; uint8 arrays are divided by 255.

    Raises InputTypeError for anything else, InputError for no pictures, other shapes, sides under
    32, NaN, or values outside [0, 1].
    """
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        if len(images) == 0:
            raise InputError(f"{name} is empty; at least one picture is needed")
        parts = [_one(image, f"{name}[{i}]") for i, image in enumerate(images)]
        sizes = {part.shape for part in parts}
        if len(sizes) > 1:
            raise InputError(f"{name} differ in shape: {sorted(sizes)}")
        return np.stack(parts)
    if not isinstance(images, np.ndarray):
        raise InputTypeError(
            f"{name} is a {type(images).__name__}; an array (n, height, width, 3) or a list of "
            "pictures is needed"
        )
    if images.ndim != 4:
        raise InputError(f"{name} has shape {images.shape}; (n, height, width, 3) is needed")
    if len(images) == 0:
        raise InputError(f"{name} is empty; at least one picture is needed")
    return _values(images, name)


def as_image(image: Any, name: str = "image") -> np.ndarray:
    """One picture as float32 (height, width, 3) in [0, 1]; raises as `as_images` does."""
    return _one(image, name)


def as_mask(mask: Any, name: str = "mask") -> np.ndarray:
    """bool (height, width) out of an array of booleans, or of numbers, which count above 0.5."""
    array = np.asarray(mask)
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"{name} has shape {array.shape}; (height, width) is needed")
    if array.dtype == bool:
        return array
    if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise InputError(f"{name} is not made of booleans or finite numbers")
    return array > 0.5


def as_boxes(boxes: Any, name: str = "boxes") -> np.ndarray:
    """float64 (n, 4) of boxes (x_min, y_min, x_max, y_max), finite and not inside out.

    No box is allowed, and a box may reach over the edge of the picture, as detections do.
    """
    array = np.asarray(boxes, np.float64)
    if array.size == 0:
        return np.zeros((0, 4))
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{name} has shape {array.shape}; (n, 4) is needed")
    if not np.isfinite(array).all() or (array[:, 2:] < array[:, :2]).any():
        raise InputError(f"{name} holds a box that is not (x_min, y_min, x_max, y_max)")
    return array


def same_length(**groups: Sequence[Any] | np.ndarray) -> None:
    """Raise InputError unless all groups are equally long and not empty."""
    sizes = {name: len(group) for name, group in groups.items()}
    if len(set(sizes.values())) > 1:
        raise InputError("lengths differ: " + ", ".join(f"{k} {n}" for k, n in sizes.items()))
    if 0 in sizes.values():
        raise InputError(f"{next(iter(sizes))} is empty; at least one is needed")


def _one(image: Any, name: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        image = np.asarray(modes.plain(name, image))
    if not isinstance(image, np.ndarray):
        raise InputTypeError(
            f"{name} is a {type(image).__name__}; an array (height, width, 3) or a PIL picture "
            "is needed"
        )
    if image.ndim != 3:
        raise InputError(f"{name} has shape {image.shape}; (height, width, 3) is needed")
    return _values(image, name)


def _values(images: np.ndarray, name: str) -> np.ndarray:
    *_, height, width, channels = images.shape
    if channels != 3 or min(height, width) < SMALLEST:
        raise InputError(
            f"{name} has shape {images.shape}; (..., height, width, 3) with sides of at least "
            f"{SMALLEST} is needed"
        )
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 255
    if images.dtype.kind != "f":
        raise InputError(f"{name} has dtype {images.dtype}; floats in [0, 1] or uint8 are needed")
    low, high = float(images.min()), float(images.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN, too
        raise InputError(f"{name} has values from {low:g} to {high:g}; [0, 1] is needed")
    return np.clip(images, 0, 1).astype(np.float32, copy=False)
